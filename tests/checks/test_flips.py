"""Flips and the identities that tie them to accuracy."""

import numpy as np
import pytest

from toolkit.checks.flips import Flips, flip_measurements, list_flips
from toolkit.checks.metrics import Predictions


def predictions(classes: list[int], targets: list[int], *, strength: float = 2.0) -> Predictions:
    logits_NK = np.zeros((len(classes), 3))
    logits_NK[np.arange(len(classes)), classes] = strength
    return Predictions.from_logits(logits_NK, np.array(targets))


TARGETS = [0, 0, 1, 1, 2, 2]
OLD = [0, 0, 1, 2, 0, 1]
NEW = [0, 1, 1, 1, 2, 0]


def test_rates_and_the_identity_with_error() -> None:
    flips = Flips(predictions(OLD, TARGETS), predictions(NEW, TARGETS))
    assert (flips.num_negative, flips.num_positive) == (1, 2)
    gain = flips.new.correct_N.mean() - flips.old.correct_N.mean()
    assert flips.positive_rate - flips.negative_rate == pytest.approx(gain)
    assert flips.churn == pytest.approx(4 / 6)
    assert flips.excess_churn == pytest.approx(4 / 6 - abs(gain))
    assert flips.relative_negative_rate == pytest.approx((1 / 6) / ((3 / 6) * (2 / 6)))


@pytest.mark.parametrize("seed", range(5))
def test_identity_holds_for_any_two_models(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets_N, logits = generator.integers(4, size=200), generator.normal(size=(2, 200, 4))
    flips = Flips(Predictions.from_logits(logits[0], targets_N), Predictions.from_logits(logits[1], targets_N))
    error = [1 - p.correct_N.mean() for p in (flips.old, flips.new)]
    assert error[1] - error[0] == pytest.approx(flips.negative_rate - flips.positive_rate)


def test_a_model_against_itself_has_no_flips_and_a_bound_on_their_rate() -> None:
    same = predictions(OLD, TARGETS)
    found = {m.name: m for m in flip_measurements(Flips(same, same))}
    assert found["negative_flip_rate"].value == 0
    assert found["negative_flip_rate"].interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 6)))
    assert found["mcnemar_p"].value == 1
    assert found["churn"].value == 0


def test_the_list_names_every_flip_with_both_answers_confidently_wrong_first() -> None:
    old = predictions(OLD, TARGETS)
    new_logits_NK = np.zeros((6, 3))
    new_logits_NK[np.arange(6), [1, 1, 1, 1, 2, 0]] = [5.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    listed = list_flips(
        Flips(old, Predictions.from_logits(new_logits_NK, np.array(TARGETS))),
        keys=list("abcdef"),
        slices=["s"] * 6,
        labels=["x", "y", "z"],
    )
    assert [(f["key"], f["kind"]) for f in listed] == [
        ("a", "negative"),
        ("b", "negative"),
        ("d", "positive"),
        ("e", "positive"),
    ]
    assert listed[0]["target"] == "x"
    assert listed[0]["candidate"]["label"] == "y"
    assert listed[0]["candidate"]["confidence"] > listed[1]["candidate"]["confidence"]


def test_different_samples_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="identical"):
        Flips(predictions(OLD, TARGETS), predictions(OLD, TARGETS[::-1]))
