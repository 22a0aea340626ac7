"""Stage `diff`."""

from dataclasses import asdict, replace

from toolkit.bundle import Bundle, Measurement, Report, Store
from toolkit.checks.regression_contract import contract_differences
from toolkit.release.differences import show_differences
from toolkit.release.quantities import parse
from toolkit.release.tables import open_console, show_report


def diff(old: Bundle, *, new: Bundle, store: Store) -> None:
    """Compare two bundles in the terminal, from what is stored: what they are, what callers notice, what was measured.

    toolkit diff production candidate. Nothing is run: the figures are those of the gate between the two or, where there was
    none, of their evaluations on the same images.
    """
    console = open_console()
    contract = [asdict(difference) for difference in contract_differences(old.manifest, new.manifest)]
    show_differences(old, new, contract, console)
    gate = store.reports(new.digest).get("gate")
    if gate is not None and gate.subjects == (new.digest, old.digest):
        show_report(gate, console)
        return
    both = _evaluations(store, old, new)
    if both is None:
        console.print(
            f"The store has no figures of both on the same images: toolkit gate bundle={new.short} baseline={old.short} "
            "data=... measures them."
        )
        return
    show_report(both, console)
    console.print("From two evaluations: these differences are not paired and have no intervals; toolkit gate measures them.")


def _evaluations(store: Store, old: Bundle, new: Bundle) -> Report | None:
    """The two bundles' evaluations side by side; None unless both saw the same images."""
    reports = [store.reports(bundle.digest).get("evaluate") for bundle in (old, new)]
    before, after = reports
    if before is None or after is None or before.details.get("data") != after.details.get("data"):
        return None
    earlier = {measurement.name: measurement for measurement in before.measurements}
    found: list[Measurement] = []
    for measurement in after.measurements:
        other = earlier.get(measurement.name)
        if other is None:
            continue
        name = parse(measurement.name)
        scope = f"[{name.scope}]" if name.scope else ""
        found += [
            replace(m, name=f"{name.metric}.{side}{scope}") for side, m in (("baseline", other), ("candidate", measurement))
        ]
        if other.value is not None and measurement.value is not None:
            found.append(Measurement(f"{name.metric}.difference{scope}", measurement.value - other.value, measurement.unit))
    return replace(after, subjects=(new.digest, old.digest), measurements=tuple(found))
