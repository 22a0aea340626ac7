"""Limits give three answers and explain them."""

import pytest

from toolkit.bundle import Measurement, verdict_of
from toolkit.checks.regression_limits import GateLimits, Rule, judge
from toolkit.errors import UsageError


def limits(**changes) -> GateLimits:
    given = {
        "measurement": "accuracy.difference",
        "relation": ">=",
        "value": -0.02,
        "reason": "because",
        "judged_by": "interval",
    }
    return GateLimits({"rule": Rule(**{**given, **changes})})


def judged(value: float | None, interval: tuple[float, float] | None, rules: GateLimits, *, n: int = 1000):
    found, told = judge([Measurement("accuracy.difference", value, interval=interval, n=n)], rules)
    return found[0], told["accuracy.difference"]


@pytest.mark.parametrize(
    ("value", "interval", "passed"),
    [(0.0, (-0.01, 0.01), True), (-0.05, (-0.07, -0.03), False), (0.0, (-0.03, 0.03), None), (None, None, None)],
)
def test_an_interval_passes_fails_or_leaves_it_open(
    value: float | None, interval: tuple[float, float] | None, passed: bool | None
) -> None:
    measurement, _ = judged(value, interval, limits())
    assert measurement.passed is passed
    assert verdict_of([measurement]) == {True: "pass", False: "fail", None: "undecided"}[passed]
    assert measurement.limit is not None
    assert measurement.limit.reason == "because"


def test_an_open_limit_says_how_many_samples_would_decide_and_what_this_set_can() -> None:
    _, told = judged(0.0, (-0.04, 0.04), limits())
    assert told["needed_samples"] == 4000
    assert told["smallest_margin"] == pytest.approx(0.04 * 2.8016 / 1.96, rel=1e-3)
    assert "4,000 samples" in told["advice"]


def test_a_budget_is_judged_by_its_value() -> None:
    measurement, _ = judged(-0.01, (-0.05, 0.03), limits(judged_by="value"))
    assert measurement.passed is True


def test_too_few_samples_are_insufficient_data() -> None:
    measurement, told = judged(0.1, (0.05, 0.15), limits(min_samples=200), n=150)
    assert measurement.passed is None
    assert "150 samples, 200 needed" in told["text"]


def test_a_limit_on_what_was_not_measured_names_near_matches() -> None:
    with pytest.raises(UsageError, match=r"accuracy\.difference"):
        judge([Measurement("accuracy.difference", 0.0)], limits(measurement="acuracy.difference"))
    with pytest.raises(UsageError, match="slice=mono"):
        judge([Measurement("accuracy.difference", 0.0)], limits(slice="mono"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": ">"}, "choose >=, <= or =="),
        ({"judged_by": "eye"}, "choose value or interval"),
        ({"relation": "=="}, "interval is held against"),
        ({"reason": " "}, "give the reason"),
    ],
)
def test_a_wrong_limit_says_what_to_type_instead(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        limits(**changes)


def test_no_limits_and_two_on_one_measurement_are_refused() -> None:
    with pytest.raises(UsageError, match="there are none"):
        GateLimits({})
    rule = limits().rules["rule"]
    with pytest.raises(UsageError, match="more than one limit"):
        GateLimits({"a": rule, "b": rule})
