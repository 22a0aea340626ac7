"""What the terminal shows, read as text."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from tests.release.conftest import Family, with_limit
from toolkit.bundle import Limit, Measurement, Report
from toolkit.release import quantities
from toolkit.release.tables import bundles_table, show_bundle, show_log, show_report


def text_of(show: Callable[[Console], object]) -> str:
    console = Console(file=io.StringIO(), width=140)
    show(console)
    return console.file.getvalue()


def test_gate_shows_old_new_change_and_every_limit_with_its_result(family: Family) -> None:
    text = text_of(lambda console: show_report(family.report("gate"), console))
    line = next(line for line in text.splitlines() if "Balanced accuracy" in line)
    assert all(part in line for part in ("70.0%", "85.0%", "+15.0 pp", "+10.0 … +20.0"))
    assert "≤ 5.0%" in text
    assert text.count("✓ pass") == 4
    assert text.rstrip().endswith("Verdict: ✓ pass")


def test_a_broken_limit_is_named_with_its_reason(family: Family) -> None:
    report = with_limit(family.report("gate"), "negative_flip_rate", value=0.2, passed=False)
    text = text_of(lambda console: show_report(report, console))
    assert "✗ fail Negative flips is 20.0%" in text
    assert "why this limit: budget" in text
    assert text.rstrip().endswith("Verdict: ✗ fail")


def test_bundle_list_and_log_name_aliases_verdicts_and_figures(family: Family) -> None:
    listed = text_of(lambda console: console.print(bundles_table(family.store)))
    assert next(line for line in listed.splitlines() if family.baseline.short in line).count("production") == 1
    log = text_of(lambda console: show_log(family.candidate.short, family.store, console))
    order = [log.index(bundle.short) for bundle in [family.candidate, *family.store.ancestors(family.candidate)]]
    assert order == sorted(order)
    assert "Balanced accuracy 85.0%" in log
    moves = text_of(lambda console: show_log("production", family.store, console))
    assert f"promote → {family.baseline.short}" in moves
    shown = text_of(lambda console: show_bundle(family.candidate, family.store, console))
    assert family.candidate.digest in shown
    assert "✓\u00a0gate" in shown


def test_any_report_is_printable() -> None:
    report = Report("parity", ("0" * 64,), "undecided", (Measurement("x", None, limit=Limit("<=", 1.0, "r")),))
    text = text_of(lambda console: show_report(report, console))
    assert "not measured" in text
    assert text.rstrip().endswith("Verdict: ? undecided")


@pytest.mark.parametrize(
    ("name", "value", "unit", "shown"),
    [
        ("accuracy.candidate", 0.8123, "1", "81.2%"),
        ("accuracy.difference[slice=mono]", -0.031, "1", "−3.1 pp"),
        ("roc_auc.difference", -0.031, "1", "−0.031"),
        ("latency_median.ratio", 0.5, "1", "0.50×"),
        ("latency_median.baseline", 4.123, "ms", "4.12 ms"),
        ("macs.baseline", 1.82e9, "MACs", "1.82 G"),
        ("parity.passed", 1.0, "1", "passed"),
        ("mcnemar_p", 1e-9, "1", "< 0.001"),
        ("error_ratio.max", 1.69, "1", "1.690"),
    ],
)
def test_numbers_read_in_their_own_style(name: str, value: float, unit: str, shown: str) -> None:
    assert quantities.show_value(Measurement(name, value, unit=unit)) == shown


def test_names_are_taken_apart() -> None:
    name = quantities.parse("balanced_accuracy.difference[slice=mono]")
    assert (name.metric, name.side, name.where) == ("balanced_accuracy", "difference", "mono")
    assert quantities.parse("contract.breaking").metric == "contract.breaking"
