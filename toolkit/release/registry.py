"""A release is an alias to a bundle whose required reports passed; this is the one place that moves one forward.

The gate's report counts only when it was made against the bundle that the alias serves now: a candidate that was compared
with last month's model has not been compared with today's.
"""

from collections.abc import Sequence

from toolkit.bundle import Bundle, Measurement, Report, Store
from toolkit.errors import CheckFailed, Undecided

HOW_TO = {"parity": "toolkit export bundle={0}", "gate": "toolkit gate bundle={0} baseline=<bundle in service>"}


def promote(store: Store, bundle: Bundle, *, alias: str, required: Sequence[str] = ("parity", "gate"), note: str = "") -> None:
    """Point `alias` at `bundle` if all `required` reports passed; promoting what it serves already changes nothing.

    Raises `CheckFailed` naming the broken limits or the missing report, `Undecided` naming what could not be decided.
    """
    require_passed(store, bundle, alias=alias, required=required)
    if store.aliases.current(alias) != bundle.digest:
        store.aliases.promote(alias, bundle.digest, note or f"reports passed: {', '.join(required) or 'none required'}")


def require_passed(store: Store, bundle: Bundle, *, alias: str, required: Sequence[str]) -> None:
    """Raise unless every report in `required` exists for `bundle`, passed, and speaks of what `alias` serves now."""
    reports = store.reports(bundle.digest)
    for check in required:
        if check not in reports:
            how = HOW_TO.get(check, f"the check '{check}'").format(bundle.short)
            raise CheckFailed(
                f"bundle {bundle.short} is not released as '{alias}': it has no '{check}' report. Make one: {how}."
            )
        report = reports[check]
        refused = f"bundle {bundle.short} is not released as '{alias}': its '{check}' report"
        if report.verdict == "fail":
            raise CheckFailed(f"{refused} failed. {reasons(report, passed=False)}")
        if report.verdict == "undecided":
            raise Undecided(f"{refused} could not decide. {reasons(report, passed=None)}")
        _require_current_baseline(store, report, bundle=bundle, alias=alias)
        split = report.details.get("data", {}).get("split", "test")
        if split != "test":
            raise CheckFailed(f"{refused} was made on the {split} split, which the model has seen. Run it on split=test.")


def reasons(report: Report, *, passed: bool | None) -> str:
    """The limited measurements with the result `passed`, each with its limit, value and reason, in one line."""
    explained = report.details.get("limits", {})
    lines = [_reason(m, explained.get(m.name, {})) for m in report.measurements if m.limit is not None and m.passed is passed]
    return " ".join(lines) or "See the report's details."


def _reason(measurement: Measurement, explanation: dict) -> str:
    assert measurement.limit is not None
    value = "not measured" if measurement.value is None else f"{measurement.value:.4g}"
    within = "" if measurement.interval is None else " (95% interval {:.4g} to {:.4g})".format(*measurement.interval)
    because = f" Why: {measurement.limit.reason}" if measurement.limit.reason else ""
    advice = f" {explanation['advice']}" if explanation.get("advice") else ""
    return f"{measurement.name} is {value}{within}, must be {measurement.limit}.{advice}{because}"


def _require_current_baseline(store: Store, report: Report, *, bundle: Bundle, alias: str) -> None:
    served = store.aliases.current(alias)
    if report.check != "gate" or served in (None, bundle.digest, report.subjects[1]):
        return
    raise CheckFailed(
        f"bundle {bundle.short} is not released as '{alias}': its gate compared it with {report.subjects[1][:12]}, "
        f"but '{alias}' now serves {served[:12]}. Run: toolkit gate bundle={bundle.short} baseline={alias}."
    )
