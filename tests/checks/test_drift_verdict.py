"""The table of decisions, and thresholds that are refused."""

import dataclasses

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from tests.stages.monitoring import thresholds
from toolkit.checks.drift_verdict import Evidence, Grade, Threshold, Thresholds, decide, grade, verdict_for
from toolkit.errors import UsageError

NONE, SMALL, LARGE = Grade.NONE, Grade.SMALL, Grade.LARGE
QUIET = Evidence(NONE, NONE, NONE, NONE, is_labelled=True)
DIFFERENT = dataclasses.replace(QUIET, embedding=LARGE)
UNLABELLED = dataclasses.replace(DIFFERENT, is_labelled=False)


@pytest.mark.parametrize(
    ("evidence", "changes", "decision"),
    [
        (QUIET, {}, "keep"),
        (QUIET, {"embedding": SMALL}, "watch"),
        (QUIET, {"is_behind": True}, "watch"),
        (QUIET, {"labels": LARGE}, "watch"),
        (QUIET, {"loss": LARGE}, "investigate"),
        (QUIET, {"broken": ("it is gone",)}, "investigate"),
        (QUIET, {"new_labels": ("hexagon",)}, "transfer"),
        (QUIET, {"possible_loss": LARGE}, "keep"),
        (DIFFERENT, {}, "watch"),
        (DIFFERENT, {"possible_loss": SMALL}, "investigate"),
        (DIFFERENT, {"possible_loss": LARGE, "probe_recovers": True}, "retrain"),
        (DIFFERENT, {"loss": LARGE}, "retrain"),
        (DIFFERENT, {"loss": LARGE, "probe_recovers": False}, "transfer"),
        (DIFFERENT, {"loss": LARGE, "probe_recovers": False, "broken": ("gone",)}, "investigate"),
        (UNLABELLED, {}, "investigate"),
        (UNLABELLED, {"loss": LARGE}, "retrain"),
        (UNLABELLED, {"loss": LARGE, "is_another_world": True}, "transfer"),
        (UNLABELLED, {"embedding": NONE, "predictions": LARGE}, "investigate"),
        (UNLABELLED, {"embedding": SMALL, "predictions": SMALL}, "watch"),
        (UNLABELLED, {"embedding": NONE}, "keep"),
    ],
)
def test_evidence_decides_and_gives_its_reason(evidence: Evidence, changes: dict, decision: str) -> None:
    found, reasons = decide(dataclasses.replace(evidence, **changes))
    assert found == decision
    assert reasons
    assert all(reason.endswith(".") or "no longer works" in reason for reason in reasons)
    assert verdict_for(found) == ("fail" if decision in ("retrain", "transfer", "investigate") else "pass")


def test_an_alarm_needs_an_effect_beyond_chance_and_beyond_its_limit() -> None:
    limit = Threshold(0.2, "for the test")
    assert grade(is_significant=False, effect=0.9, limit=limit) == NONE
    assert grade(is_significant=True, effect=0.1, limit=limit) == SMALL
    assert grade(is_significant=True, effect=0.3, limit=limit) == LARGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.7}, "false-alarm rate"),
        ({"min_samples": 5}, "fewer than 20"),
        ({"separable": 0.97}, "separable"),
        ({"psi": -1}, "negative"),
    ],
)
def test_thresholds_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        thresholds(**change)
    with pytest.raises(UsageError, match="reason"):
        Threshold(0.1, " ")


def test_the_default_thresholds_have_reasons_of_their_own() -> None:
    with initialize_config_module("toolkit.conf", version_base="1.3"):
        found = instantiate(compose("drift", overrides=["thresholds=default"]).thresholds, _convert_="all")
    assert isinstance(found, Thresholds)
    reasons = [threshold.reason for threshold in vars(found).values()]
    assert len(set(reasons)) == len(reasons)
