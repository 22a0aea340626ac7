"""What to watch once the model serves: where the evidence is thinnest, each with its numbers. Nothing here is an opinion."""

from collections import Counter
from collections.abc import Iterator

from toolkit.bundle import Measurement, Report
from toolkit.release.quantities import parse, rows, show, show_interval, show_limit, show_value

MAX_LIMITS, MAX_LABELS, MAX_DRIFTED = 2, 3, 4
CLOSE = 0.25  # of the way from no effect to the limit
SLICED = ("balanced_accuracy", "accuracy")


def watch(gate: Report, drift: Report | None) -> list[tuple[str, str]]:
    """Names and sentences: the weakest slice, the labels that lost most, what drifted, the limits that hold most narrowly."""
    return [*_weakest_slice(gate), *_losing_labels(gate), *_drifted(drift), *_narrow_limits(gate)]


def _weakest_slice(gate: Report) -> Iterator[tuple[str, str]]:
    found = rows(gate)
    for metric in SLICED:
        sliced = [r for r in found if r.metric == metric and r.scope.startswith("slice=") and r.candidate.value is not None]
        if len(sliced) < 2:
            continue
        row = min(sliced, key=lambda r: r.candidate.value or 0.0)
        change = f", was {show_value(row.baseline)}"
        yield (
            f"Weakest slice: {row.name.where}",
            f"{parse(metric).title} {show_value(row.candidate)} ({show_interval(row.candidate)}){change}.",
        )
        return


def _losing_labels(gate: Report) -> Iterator[tuple[str, str]]:
    lost = Counter(str(flip["target"]) for flip in gate.details.get("flips", ()) if flip["kind"] == "negative")
    if lost:
        told = ", ".join(f"{label} ({count})" for label, count in lost.most_common(MAX_LABELS))
        yield "Labels with answers that got worse", f"{told}: right before, wrong now."


def _drifted(drift: Report | None) -> Iterator[tuple[str, str]]:
    broken = [m for m in drift.measurements if m.limit is not None and m.passed is False] if drift else []
    if broken:
        told = "; ".join(f"{parse(m.name).title} {show_value(m)} (limit {show_limit(m)})" for m in broken[:MAX_DRIFTED])
        yield "Data that had moved from the former model's", f"{told}."


def _narrow_limits(gate: Report) -> Iterator[tuple[str, str]]:
    """Limits that hold with the least room: between the nearer end of the interval and the bound, as a share of the bound."""
    held = [m for m in gate.measurements if m.passed and m.limit is not None and m.limit.relation != "=="]
    for m in sorted(held, key=_room)[:MAX_LIMITS]:
        assert m.limit is not None
        if _room(m) > CLOSE:
            return
        room = show(_nearest(m), m)
        yield (
            f"Holds narrowly: {parse(m.name).title}",
            f"{show_value(m)}, by its interval {room}; limit {show_limit(m)}."
            if (m.interval)
            else f"{show_value(m)}; limit {show_limit(m)}.",
        )


def _nearest(measurement: Measurement) -> float:
    """The end of the interval that is nearest to the limit; the value where there is none."""
    assert measurement.limit is not None
    ends = measurement.interval or (measurement.value or 0.0,) * 2
    return min(ends) if measurement.limit.relation == ">=" else max(ends)


def _room(measurement: Measurement) -> float:
    assert measurement.limit is not None
    bound = measurement.limit.value
    return abs(_nearest(measurement) - bound) / max(abs(bound), abs(measurement.value or 0.0), 1e-9)
