"""May a caller of the old model call the new one unchanged? The differences between two contracts, each named.

`breaking`: code written for the old model gets an error or reads a wrong meaning (another input name, another label order).
`compatible`: a caller that prepares images by the bundle's preprocessing spec, as the toolkit's own serving does, needs no
change (another image size, another mean that stands inside the graph).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from toolkit.bundle import Manifest, Measurement, TensorSpec


@dataclasses.dataclass(frozen=True)
class Difference:
    """One difference of contract: what differs, both values, and its severity."""

    item: str
    baseline: Any
    candidate: Any
    severity: str


def contract_differences(baseline: Manifest, candidate: Manifest) -> list[Difference]:
    """All differences a caller could notice, breaking ones first."""
    found = list(_label_differences(baseline.labels, candidate.labels))
    for direction in ("inputs", "outputs"):
        found += _tensor_differences(direction, getattr(baseline.contract, direction), getattr(candidate.contract, direction))
    old, new = dataclasses.asdict(baseline.preprocessing), dataclasses.asdict(candidate.preprocessing)
    found += [Difference(f"preprocessing.{k}", old[k], new[k], "compatible") for k in old if old[k] != new[k]]
    return sorted(found, key=lambda difference: difference.severity != "breaking")


def contract_measurements(baseline: Manifest, candidate: Manifest) -> list[Measurement]:
    """`contract.breaking` and `contract.compatible` count differences; `contract.labels_identical` is 1 or 0."""
    differences = contract_differences(baseline, candidate)
    breaking = sum(d.severity == "breaking" for d in differences)
    return [
        Measurement("contract.labels_identical", float(baseline.labels == candidate.labels)),
        Measurement("contract.breaking", breaking, unit="differences"),
        Measurement("contract.compatible", len(differences) - breaking, unit="differences"),
    ]


def _label_differences(old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[Difference]:
    if old == new:
        return
    if sorted(old) == sorted(new):
        yield Difference("labels.order", list(old), list(new), "breaking")
        return
    missing, added = [k for k in old if k not in new], [k for k in new if k not in old]
    yield Difference("labels", f"only here: {', '.join(missing) or '-'}", f"only here: {', '.join(added) or '-'}", "breaking")


def _tensor_differences(direction: str, old: tuple[TensorSpec, ...], new: tuple[TensorSpec, ...]) -> Iterator[Difference]:
    old_names, new_names = [t.name for t in old], [t.name for t in new]
    if old_names != new_names:
        yield Difference(f"{direction}.names", old_names, new_names, "breaking")
    by_name = {t.name: t for t in new}
    for spec in old:
        if spec.name not in by_name:
            continue
        other = by_name[spec.name]
        for field in ("dtype", "layout", "meaning", "value_range"):
            before, after = getattr(spec, field), getattr(other, field)
            if before != after:
                yield Difference(f"{direction}.{spec.name}.{field}", before, after, "breaking")
        if spec.dims != other.dims:
            severity = "compatible" if direction == "inputs" and _only_spatial(spec, other) else "breaking"
            yield Difference(f"{direction}.{spec.name}.dims", list(spec.dims), list(other.dims), severity)


def _only_spatial(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether two image inputs differ in height and width alone, which the preprocessing spec governs."""
    if len(old.dims) != len(new.dims) or old.layout != new.layout or len(old.layout) != len(old.dims):
        return False
    return all(axis in "HW" for axis, a, b in zip(old.layout, old.dims, new.dims, strict=True) if a != b)
