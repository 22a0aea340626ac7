"""The service's threshold is carried over to the new model, and pinned images keep their answers."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from tests.checks.planted import images, stored, trained, with_head
from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.metrics import Predictions
from toolkit.checks.operating_point import Alerts, Service, alert_measurements, carried_threshold, threshold_table
from toolkit.checks.regression import regression
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.errors import InputRefused, UsageError

LIMITS = GateLimits({"labels": Rule("contract.labels_identical", "==", 1, reason="planted")})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def old(shelf: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return stored(shelf, trained(num_epochs=3, seed=1), graph=tmp_path_factory.mktemp("old") / "old.onnx")


@pytest.fixture(scope="module")
def sharper(shelf: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The old model with logits three times as large: the same labels, other probabilities."""
    net = with_head(trained(num_epochs=3, seed=1), scale=3.0)
    return stored(shelf, net, graph=tmp_path_factory.mktemp("new") / "new.onnx")


def judged(candidate: Bundle, baseline: Bundle, service: Service, limits: GateLimits = LIMITS) -> Report:
    return regression(candidate, baseline, images(), limits=limits, latency_rounds=10, service=service)


def random_alerts(seed: int, *, threshold: float = 0.5, n: int = 400) -> Alerts:
    generator = np.random.default_rng(seed)
    wanted_N = generator.random(n) < 0.3
    return Alerts(np.clip(generator.normal(0.35 + 0.3 * wanted_N, 0.2), 0.001, 0.999), wanted_N, threshold)


@pytest.mark.parametrize("keep", ["recall", "precision", "alert_rate"])
@pytest.mark.parametrize("seed", range(5))
def test_the_carried_threshold_keeps_what_it_must_and_gives_nothing_away(keep: str, seed: int) -> None:
    baseline, ones = random_alerts(seed), np.ones((1, 400))
    other = random_alerts(seed + 100)
    scores_N = np.where(baseline.wanted_N, other.scores_N**0.5, other.scores_N**2)
    candidate = Alerts(scores_N, baseline.wanted_N, 0.5)
    found = Alerts(scores_N, baseline.wanted_N, carried_threshold(baseline, candidate, keep))
    target, reached = getattr(baseline, keep)(ones)[0], getattr(found, keep)(ones)[0]
    assert reached <= target if keep == "alert_rate" else reached >= target
    nearby = 1 / 400 if keep == "alert_rate" else 1 / baseline.wanted_N.sum()
    if keep != "precision":
        assert abs(reached - target) <= nearby + 1e-12
    else:  # acting on one image more would not keep it
        below = np.sort(scores_N[scores_N < found.threshold])
        looser = [Alerts(scores_N, baseline.wanted_N, t) for t in below]
        assert all(alerts.precision(ones)[0] < target for alerts in looser)


def test_the_figures_are_scikit_learns() -> None:
    baseline, candidate = random_alerts(1), random_alerts(1, threshold=0.6)
    values = {m.name: m for m in alert_measurements(baseline, candidate)}
    truth, raised = candidate.wanted_N, candidate.raised_N
    assert values["alert_recall.candidate"].value == pytest.approx(recall_score(truth, raised))
    assert values["alert_precision.candidate"].value == pytest.approx(precision_score(truth, raised))
    assert values["alert_rate.candidate"].value == pytest.approx(raised.mean())
    low, high = values["alert_recall.difference"].interval or (0, 0)
    assert low < (values["alert_recall.difference"].value or 0) < high < 0
    flipped = ((baseline.raised_N == truth) & (raised != truth)).mean()
    assert values["alert_negative_flip_rate"].value == pytest.approx(flipped)


@pytest.mark.parametrize("keep", ["recall", "precision", "alert_rate"])
def test_a_bundle_against_itself_keeps_its_threshold_and_its_actions(old: Bundle, keep: str) -> None:
    report = judged(old, old, Service(label="circle", threshold=0.42, keep=keep))  # pyright: ignore[reportArgumentType]
    assert report.details["operating_point"]["threshold"] == 0.42
    assert report.value("alert_negative_flip_rate") == 0
    assert report.value("alert_recall.difference") == report.value("alert_rate.difference") == 0


def test_other_probabilities_of_the_same_ranking_get_another_threshold_and_the_same_actions(
    old: Bundle, sharper: Bundle
) -> None:
    report = judged(sharper, old, Service(label="circle", threshold=0.3, keep="alert_rate"))
    facts = report.details["operating_point"]
    assert facts["threshold"] != 0.3
    assert abs(report.value("alert_rate.difference") or 0) < 0.02
    moved = abs(facts["at_the_old_threshold"]["alert_rate"] - (report.value("alert_rate.baseline") or 0))
    assert moved > abs(report.value("alert_rate.difference") or 0)


def test_a_limit_may_stand_on_the_action(old: Bundle, sharper: Bundle) -> None:
    limits = GateLimits({"found": Rule("alert_recall.difference", ">=", -0.05, reason="planted", judged_by="interval")})
    assert judged(sharper, old, Service(label="circle", threshold=0.3), limits).verdict == "pass"
    with pytest.raises(UsageError, match="alert_recall"):
        judged(sharper, old, Service(), limits)


def test_no_answer_may_get_worse_on_pinned_images(old: Bundle, shelf: Store, tmp_path: Path) -> None:
    worse = stored(shelf, trained(num_epochs=1, seed=5), graph=tmp_path / "worse.onnx")
    flips = judged(worse, old, Service()).details["flips"]
    lost = [flip["key"] for flip in flips if flip["kind"] == "negative"]
    won = [flip["key"] for flip in flips if flip["kind"] == "positive"]
    (tmp_path / "lost.txt").write_text("# what customers look at\n" + "\n".join([*lost[:3], *won[:2]]) + "\n")
    report = judged(worse, old, Service(pinned=tmp_path / "lost.txt"))
    assert (report.verdict, report.value("pinned_negative_flips")) == ("fail", 3)
    (tmp_path / "won.txt").write_text("\n".join(won[:2]))
    assert judged(worse, old, Service(pinned=str(tmp_path / "won.txt"))).verdict == "pass"
    allowed = GateLimits({"pinned": Rule("pinned_negative_flips", "<=", 3, reason="planted")})
    assert judged(worse, old, Service(pinned=tmp_path / "lost.txt"), allowed).verdict == "pass"


def test_wrong_input_says_what_to_type(old: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="circle"):
        judged(old, old, Service(label="cirle"))
    with pytest.raises(UsageError, match="threshold is 1"):
        Service(threshold=1.0)
    with pytest.raises(UsageError, match="recall"):
        Service(keep="recal")  # pyright: ignore[reportArgumentType]
    (tmp_path / "keys.txt").write_text("nowhere.png\n")
    with pytest.raises(InputRefused, match=r"nowhere\.png"):
        judged(old, old, Service(pinned=tmp_path / "keys.txt"))
    with pytest.raises(InputRefused, match="cannot be read"):
        judged(old, old, Service(pinned=tmp_path / "none.txt"))
    with pytest.raises(UsageError, match="val split"):
        regression(old, old, images(), limits=LIMITS, latency_rounds=10, split="val", service=Service(label="circle"))


def test_the_table_of_thresholds_equals_scikit_learn_and_says_where_a_figure_is_undefined() -> None:
    generator = np.random.default_rng(0)
    targets_N = generator.integers(0, 3, size=300)
    sides = {side: Predictions.from_logits(generator.normal(size=(300, 3)), targets_N) for side in ("baseline", "candidate")}
    table = threshold_table(sides, 2)
    assert [row["threshold"] for row in table] == [percent / 100 for percent in range(1, 100)]
    for row in (table[0], table[29], table[59]):
        for side, predictions in sides.items():
            raised_N, wanted_N = predictions.probabilities_NK[:, 2] >= row["threshold"], targets_N == 2
            assert row[side]["recall"] == pytest.approx(recall_score(wanted_N, raised_N), abs=1e-5)
            assert row[side]["precision"] == pytest.approx(precision_score(wanted_N, raised_N), abs=1e-5)
            assert row[side]["alert_rate"] == pytest.approx(raised_N.mean(), abs=1e-5)
            assert row[side]["false_positive_rate"] == pytest.approx(raised_N[~wanted_N].mean(), abs=1e-5)
    never = threshold_table({"baseline": Predictions.from_logits(np.zeros((4, 2)), np.array([0, 1, 0, 1]))}, 1)[-1]
    assert never["baseline"] == {"recall": 0.0, "precision": None, "alert_rate": 0.0, "false_positive_rate": 0.0}


def test_the_gate_charts_the_label_that_is_acted_on(old: Bundle, sharper: Bundle) -> None:
    label = images().labels[0]
    details = judged(sharper, old, Service(label=label)).details
    assert details["thresholds"]["label"] == label
    assert len(details["thresholds"]["table"]) == 99
    assert details["curves"]["candidate"]["roc"][-1] == (1.0, 1.0)
