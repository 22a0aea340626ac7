"""Reports, bundles and lineages in the terminal. Colour never stands alone: every result is also a word."""

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from toolkit.bundle import Bundle, Measurement, Report, Store
from toolkit.release.benchmark_table import benchmark_tables
from toolkit.release.drift_table import show_drift
from toolkit.release.findings import architecture_words, contract_words, few, findings
from toolkit.release.quantities import (
    SCORES,
    Row,
    limited,
    parse,
    rows,
    show_interval,
    show_limit,
    show_result,
    show_value,
)

STYLES = {"pass": "green", "fail": "bold red", "undecided": "yellow", "better": "green", "worse": "red", "same": "dim"}
MARKS = {"pass": "✓", "fail": "✗", "undecided": "?"}
TITLES = {
    "gate": "Gate",
    "parity": "Parity",
    "parity.fp16": "Parity in fp16",
    "parity.int8": "Parity in int8",
    "pruning": "Pruning",
    "evaluate": "Evaluation",
    "calibration": "Calibration",
}
MAX_REST = 40
PLAIN_WIDTH = 116


def open_console() -> Console:
    """The terminal; where output goes to a file or a pipe, wide enough for every table to keep its numbers whole."""
    console = Console()
    return console if console.is_terminal else Console(width=max(PLAIN_WIDTH, console.width))


def show_report(report: Report, console: Console) -> None:
    """Print a report: the gate as old against new and its limits, any other as its measurements; the verdict last."""
    compared = rows(report)
    if report.check == "benchmark":
        console.print(*benchmark_tables(report))
        return
    if report.check == "drift":
        show_drift(report, console)
        return
    if compared:
        console.print(_comparison_table(report, compared))
    elif not limited(report):
        if report.measurements:
            console.print(_measurement_table(report))
        return
    if limited(report):
        show_verdict(report, console)


def show_verdict(report: Report, console: Console) -> None:
    """Print every limit of a report with value, interval, limit and result, then the verdict."""
    table = _table(f"{_title(report)}: limits")
    for column in ("", "value", "95% interval", "limit", "result"):
        table.add_column(column, justify="left" if column in ("", "result") else "right", no_wrap=column != "")
    for measurement in sorted(limited(report), key=lambda m: (m.passed is False, m.passed is None)):
        table.add_row(
            parse(measurement.name).title,
            show_value(measurement),
            show_interval(measurement),
            show_limit(measurement),
            _marked(show_result(measurement.passed)),
        )
    console.print(table)
    for measurement in limited(report):
        if measurement.passed is not True:
            console.print(_objection(measurement, report))
    for line in _adaptation_lines(report):
        console.print(Text(line))
    console.print(Text.assemble("Verdict: ", _marked(report.verdict)))


def show_bundle(bundle: Bundle, store: Store, console: Console) -> None:
    """Print what a bundle is: architecture, labels, input, origin, files, aliases and the verdicts of its reports."""
    manifest = bundle.manifest
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    size = manifest.preprocessing.size_px
    pruned = f", pruned ({len(manifest.plan.kept)} tensors)" if manifest.plan else ""
    facts = [
        ("digest", bundle.digest),
        ("architecture", f"{architecture_words(manifest)}{pruned}"),
        ("labels", few(manifest.labels)),
        ("input", f"{manifest.preprocessing.colour} {size[0]}×{size[1]} px, {manifest.preprocessing.resize}"),
        *contract_words(manifest),
        ("made by", f"{manifest.lineage.stage} from {', '.join(p[:12] for p in manifest.lineage.parents) or 'outside'}"),
        *findings(store, bundle.digest),
        ("files", ", ".join(f"{name} ({_mib(bundle, name)})" for name in sorted(manifest.files))),
        ("aliases", ", ".join(_aliases(store, bundle)) or "-"),
    ]
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), Text(value))
    grid.add_row(Text("reports", style="dim"), _verdicts(store, bundle))
    grid.add_row(Text("path", style="dim"), Text(str(bundle.path)))
    console.print(Panel(grid, title=f"bundle {bundle.short}", title_align="left", border_style="dim", expand=False))


def bundles_table(store: Store) -> Table:
    """The bundles of a store, one a line, each after the one it was made from."""
    table = _table(f"Bundles in {store.root}")
    for column in ("bundle", "alias", "architecture", "made by", "size", "reports"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=column in ("bundle", "size"))
    families = [(bundle, store.ancestors(bundle)) for bundle in store.bundles()]
    for bundle, ancestors in sorted(families, key=lambda f: ([b.digest for b in reversed([f[0], *f[1]])])):
        table.add_row(
            bundle.short,
            Text(", ".join(_aliases(store, bundle)), style="bold"),
            Text(_architecture(bundle)),
            f"{'  ' * len(ancestors)}{bundle.manifest.lineage.stage}",
            f"{sum(_bytes(bundle, name) for name in bundle.manifest.files) / 2**20:.1f} MiB",
            _verdicts(store, bundle),
        )
    return table


def show_log(reference: str, store: Store, console: Console) -> None:
    """Print the lineage of what `reference` names, newest first, and the moves when it is an alias."""
    bundle = store.open(reference)
    table = _table(f"Lineage of {reference}, newest first")
    for column in ("bundle", "made by", "architecture", "input", "key figures", "code"):
        table.add_column(column, no_wrap=column == "bundle")
    for member in [bundle, *store.ancestors(bundle)]:
        made = member.manifest.lineage
        commit = "-" if made.git_commit is None else f"{made.git_commit[:9]}{'+changes' if made.git_dirty else ''}"
        size = member.manifest.preprocessing.size_px
        figures = Group(_verdicts(store, member), *map(Text, key_figures(store, member)))
        aliases = ", ".join(_aliases(store, member))
        table.add_row(
            Text.assemble(member.short, (f"\n{aliases}" if aliases else "", "bold")),
            made.stage,
            Text(_architecture(member)),
            f"{size[0]}×{size[1]} px",
            figures,
            commit,
        )
    console.print(table)
    moves = store.aliases.history(reference) if reference in store.aliases.names() else ()
    if moves:
        tree = Tree(Text(f"alias {reference}", style="bold"), guide_style="dim")
        for move in reversed(moves):
            tree.add(Text(f"{move.time_utc}  {move.action} → {move.digest[:12]}{f'  ({move.note})' if move.note else ''}"))
        console.print(tree)


def key_figures(store: Store, bundle: Bundle) -> list[str]:
    """A few words on how good a bundle is, from its reports: balanced accuracy and ROC-AUC from the gate or evaluation."""
    reports = store.reports(bundle.digest)
    wanted = ("balanced_accuracy", "roc_auc")
    for check, suffix in (("gate", ".candidate"), ("evaluate", "")):
        values = {m.name: m for m in reports[check].measurements} if check in reports else {}
        found = [values[f"{metric}{suffix}"] for metric in wanted if f"{metric}{suffix}" in values]
        if found:
            return [f"{parse(m.name).title.split(',')[0]} {show_value(m)}" for m in found]
    return []


def _comparison_table(report: Report, compared: list[Row]) -> Table:
    data = report.details.get("data", {})
    where = f" on {data['name']}, {data['split']} split, {data['num_samples']} images" if data else ""
    table = _table(f"{_title(report)}: old against new{where}")
    columns = ("", "where", "baseline", "candidate", "change", "95% interval")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "where") else "right", no_wrap=column != "")
    scope = ""
    for row in compared:
        if row.scope.startswith("slice=") and row.metric not in SCORES:
            continue
        if row.scope != scope:
            table.add_section()
            scope = row.scope
        change = row.change
        table.add_row(
            parse(row.metric).title,
            row.name.where,
            show_value(row.baseline),
            show_value(row.candidate),
            Text(show_value(change) if change else "", style=STYLES[row.direction]),
            show_interval(change) if change else "",
        )
    return table


def _measurement_table(report: Report) -> Table:
    table = _table(_title(report))
    for column in ("", "value", "95% interval", "n"):
        table.add_column(column, justify="left" if column == "" else "right")
    for m in report.measurements[:MAX_REST]:
        table.add_row(parse(m.name).title, show_value(m), show_interval(m), "" if m.n is None else f"{m.n:,}")
    if len(report.measurements) > MAX_REST:
        table.add_row(f"... and {len(report.measurements) - MAX_REST} more in the report", "", "", "")
    return table


def _objection(measurement: Measurement, report: Report) -> Text:
    assert measurement.limit is not None
    advice = report.details.get("limits", {}).get(measurement.name, {}).get("advice", "")
    within = f" ({show_interval(measurement)})" if measurement.interval else ""
    said = f" {parse(measurement.name).title} is {show_value(measurement)}{within}, must be {show_limit(measurement)}. {advice}"
    why = f"\n    why this limit: {measurement.limit.reason}" if measurement.limit.reason else ""
    return Text.assemble("  ", _marked(show_result(measurement.passed)), said.rstrip(), why)


def _adaptation_lines(report: Report) -> list[str]:
    """What the adapter of a gated bundle does, or why there is none."""
    found = report.details.get("adaptation", {})
    steps = [f"  ⇄ adapter around {found['of'][:12]}: {step}" for step in found.get("steps", ())]
    return steps + [f"  ✗ not adapted: {reason}" for reason in found.get("refused", ())]


def _title(report: Report) -> str:
    return TITLES.get(report.check, report.check.replace("_", " ").capitalize())


def _table(title: str) -> Table:
    return Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)


def _marked(result: str) -> Text:
    return Text(f"{MARKS[result]} {result}", style=STYLES[result])


def _verdicts(store: Store, bundle: Bundle) -> Text:
    text = Text()
    for check, report in store.reports(bundle.digest).items():
        text.append(f"{MARKS[report.verdict]}\u00a0{check}  ", style=STYLES[report.verdict])
    return text


def _aliases(store: Store, bundle: Bundle) -> list[str]:
    return [name for name in store.aliases.names() if store.aliases.current(name) == bundle.digest]


def _architecture(bundle: Bundle) -> str:
    return f"{bundle.manifest.architecture.key}{' (pruned)' if bundle.manifest.plan else ''}"


def _bytes(bundle: Bundle, name: str) -> int:
    path = bundle.path / name
    return path.stat().st_size if path.is_file() else 0


def _mib(bundle: Bundle, name: str) -> str:
    return f"{_bytes(bundle, name) / 2**20:.2f} MiB"
