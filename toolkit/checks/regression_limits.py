"""What the gate demands: limits with their reasons, and how a measurement is held against one.

A limit is judged by the value where the measured set is the subject itself (a budget of flips, a file size), and by the
interval where the set stands for all images to come (is the new model worse?). Only the second kind can be undecided, and
then the report says how many samples would decide. Limits are data so that they can be written down, with the reason for
each, before the numbers are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolkit.bundle import Limit, Measurement
from toolkit.checks.intervals import samples_to_decide, smallest_margin
from toolkit.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Rule:
    """One limit: `measurement` (of slice `slice` where given) must keep `relation` to `value`, because of `reason`.

    `judged_by="interval"` demands it of the whole 95% interval: pass when all of it keeps the bound, fail when none of it
    does, undecided between. Fewer than `min_samples` samples are undecided.
    """

    measurement: str
    relation: Literal[">=", "<=", "=="]
    value: float
    reason: str
    judged_by: Literal["value", "interval"] = "value"
    slice: str = ""
    min_samples: int = 0

    def __post_init__(self) -> None:
        if self.relation not in (">=", "<=", "=="):
            raise UsageError(f"limit on {self.measurement}: relation is '{self.relation}'; choose >=, <= or ==")
        if self.judged_by not in ("value", "interval"):
            raise UsageError(f"limit on {self.measurement}: judged_by is '{self.judged_by}'; choose value or interval")
        if self.judged_by == "interval" and self.relation == "==":
            raise UsageError(f"limit on {self.measurement}: an interval is held against >= or <=, not ==")
        if not self.reason.strip():
            raise UsageError(f"limit on {self.measurement}: give the reason it was chosen (reason=...)")

    @property
    def subject(self) -> str:
        """The name of the measurement in the report."""
        return f"{self.measurement}[slice={self.slice}]" if self.slice else self.measurement


@dataclass(frozen=True)
class GateLimits:
    """All limits of a gate, by a short name each; one limit a measurement."""

    rules: Mapping[str, Rule]

    def __post_init__(self) -> None:
        subjects = [rule.subject for rule in self.rules.values()]
        twice = sorted({subject for subject in subjects if subjects.count(subject) > 1})
        if twice:
            raise UsageError(f"limits: more than one limit on {', '.join(twice)}; keep one of them")
        if not self.rules:
            raise UsageError("limits: there are none, so the gate would pass anything; choose limits=default")


def judge(measurements: list[Measurement], limits: GateLimits) -> tuple[list[Measurement], dict[str, dict[str, Any]]]:
    """The measurements with their limits and results, and the explanation of each result by measurement name.

    Raises `UsageError` when a limit names a measurement that was not made.
    """
    rules = {rule.subject: (name, rule) for name, rule in limits.rules.items()}
    known = [m.name for m in measurements]
    for subject in rules:
        if subject not in known:
            raise unknown_name("measurement in limits", subject, known)
    judged, explanations = [], {}
    for measurement in measurements:
        if measurement.name not in rules:
            judged.append(measurement)
            continue
        name, rule = rules[measurement.name]
        held = replace(measurement, limit=Limit(rule.relation, rule.value, rule.reason), passed=_passed(measurement, rule))
        judged.append(held)
        explanations[measurement.name] = {"rule": name, "judged_by": rule.judged_by, **_explain(held, rule)}
    return judged, explanations


def _passed(measurement: Measurement, rule: Rule) -> bool | None:
    limit = Limit(rule.relation, rule.value)
    if measurement.value is None or (measurement.n is not None and measurement.n < rule.min_samples):
        return None
    if rule.judged_by == "value":
        return limit.holds(measurement.value)
    if measurement.interval is None:
        return None
    ends = [limit.holds(end) for end in measurement.interval]
    return True if all(ends) else None if any(ends) else False


def _explain(measurement: Measurement, rule: Rule) -> dict[str, Any]:
    """The result in a sentence (`text`); where it is open, what would decide it (`advice`).

    For a limit judged by its interval also the smallest margin that so many samples decide.
    """
    if measurement.value is None:
        return {"text": "not measured, so it cannot be judged", "advice": "It was not measured."}
    if measurement.n is not None and measurement.n < rule.min_samples:
        text = f"insufficient data: {measurement.n} samples, {rule.min_samples} needed"
        return {"text": text, "advice": f"{text.capitalize()}.", "needed_samples": rule.min_samples}
    result = {True: "holds", False: "is broken", None: "is undecided"}[measurement.passed]
    if rule.judged_by == "value":
        return {"text": f"{measurement.value:.4g} against {measurement.limit}: the limit {result}"}
    if measurement.interval is None:
        return {"text": "no interval, so it cannot be judged", "advice": "There are too few samples for an interval."}
    low, high = measurement.interval
    told: dict[str, Any] = {
        "text": f"95% interval {low:.4g} to {high:.4g} against {measurement.limit}: the limit {result}",
        "smallest_margin": smallest_margin(measurement.interval),
    }
    if measurement.passed is None and measurement.n is not None:
        needed = samples_to_decide(measurement.value, measurement.interval, rule.value, measurement.n)
        told["needed_samples"] = needed
        advice = (
            f"About {needed:,} samples would decide, if the value stays" if needed else "More samples would not soon decide"
        )
        told["advice"] = f"{advice}."
    return told
