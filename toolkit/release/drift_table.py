"""A drift report in the terminal: what was compared, what moved and how far, the decision and its reasons."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from toolkit.bundle import Measurement, Report
from toolkit.release.quantities import parse, show_interval, show_limit, show_value

STYLES = {
    "keep": "green",
    "watch": "yellow",
    "undecided": "yellow",
    "retrain": "bold red",
    "transfer": "bold red",
    "investigate": "bold red",
}
MEANINGS = {
    "keep": "the model may stay as it is",
    "watch": "no action; look again soon",
    "retrain": "train the same network on the new data",
    "transfer": "move to another backbone or head, with the new data",
    "investigate": "a person must look before anything is trained",
    "undecided": "not enough data to say",
}  # fmt: skip


def show_drift(report: Report, console: Console) -> None:
    """Print a report `drift`."""
    details = report.details
    console.print(_effects(report))
    if details.get("tests"):
        console.print(_tests(details["tests"]))
    decision = details["decision"]
    console.print(
        Group(
            Text.assemble("Decision: ", (decision, STYLES[decision]), f" ({MEANINGS[decision]})"),
            *(Text(f"  - {reason}") for reason in details["reasons"]),
        )
    )


def compared(details: Mapping[str, Any]) -> str:
    """What was compared with what, in a line."""
    new, old = details["data"], details["reference"]
    left_out = f" ({new['num_known']} more are in the reference and left out)" if new["num_known"] else ""
    return f"{new['num_samples']} images of {new['name']}{left_out} against {old['num_samples']} of {old['name']}"


def effects(report: Report) -> list[Measurement]:
    """The measurements a limit judges, and of the others those a reader asks for."""
    return [m for m in report.measurements if m.limit is not None or m.name in ("estimated.loss", "estimated.loss_atc")]


def result(measurement: Measurement) -> str:
    """`within` its limit, `beyond` it, or `unproven`: beyond it by no more than chance may do. Nothing without a limit."""
    if measurement.limit is None or measurement.value is None:
        return ""
    if not measurement.passed:
        return "beyond"
    return "within" if measurement.limit.holds(measurement.value) else "unproven"


def _effects(report: Report) -> Table:
    table = _table(f"Drift: {compared(report.details)}")
    for column in ("", "value", "95% interval", "limit", "result"):
        table.add_column(column, justify="left" if column in ("", "result") else "right", no_wrap=column != "")
    for m in effects(report):
        word = result(m)
        style = {"beyond": "bold red", "within": "green", "unproven": "yellow"}.get(word, "")
        table.add_row(parse(m.name).title, show_value(m), show_interval(m), show_limit(m), Text(word, style=style))
    return table


def _tests(tests: list[dict[str, Any]]) -> Table:
    table = _table("Beyond chance? (Holm over all families)")
    for column in ("family", "p", "adjusted", ""):
        table.add_column(column, justify="right" if column in ("p", "adjusted") else "left")
    for test in tests:
        said = Text("beyond chance", style="bold") if test["beyond_chance"] else Text("chance explains it", style="dim")
        table.add_row(test["family"], show_p(test["p"]), show_p(test["adjusted"]), said)
    return table


def show_p(p: float) -> str:
    """A p-value to three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(title: str) -> Table:
    return Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
