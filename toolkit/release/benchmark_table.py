"""The benchmark in the terminal and on its page: one row a runner and batch size, numbers and verdict side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from toolkit.bundle import Measurement, Report
from toolkit.release.quantities import show_value

STYLES = {"faster": "green", "slower": "red", "no difference": "dim", "baseline": "dim"}
COLUMNS: tuple[str, ...] = (
    "runner",
    "batch",
    "accuracy",
    "same",
    "p50 ms",
    "p95",
    "p99",
    "ratio",
    "speed",
    "images/s",
    "RAM MiB",
    "file MiB",
    "load ms",
)
NUM_FIRST = COLUMNS.index("speed") + 1


@dataclass(frozen=True)
class Run:
    """One runner at one batch size, its measurements by metric; `said` is faster, slower, no difference or baseline."""

    runner: str
    batch: int
    measurements: dict[str, Measurement]
    said: str

    def number(self, metric: str) -> float:
        """The value of a metric that every run has."""
        value = self.measurements[metric].value
        assert value is not None
        return value

    @property
    def ratio(self) -> str:
        """The ratio of medians to the baseline's with its interval, or a dash."""
        found = self.measurements.get("latency_ratio")
        if found is None or found.interval is None:
            return "-"
        return f"{found.value:.2f} ({found.interval[0]:.2f}–{found.interval[1]:.2f})"

    def cells(self) -> list[str]:
        """The row as text, in the order of `COLUMNS`."""
        accuracy, agreement = self.measurements["accuracy"], self.measurements["top1_agreement"]
        latencies = [f"{self.number(metric):.2f}" for metric in ("latency_median", "latency_p95", "latency_p99")]
        sizes = [f"{self.number(metric):.1f}" for metric in ("memory", "size", "load_time")]
        return [
            *(self.runner, str(self.batch), show_value(accuracy), show_value(agreement), *latencies, self.ratio, self.said),
            *(f"{self.number('throughput'):,.0f}", *sizes),
        ]


def runs_of(report: Report) -> list[Run]:
    """The runs of a report `benchmark`, in its order."""
    found = []
    for facts in report.details["runs"]:
        name, batch = facts["runner"], facts["batch"]
        suffix = f".{name}[batch={batch}]"
        own = {m.name.removesuffix(suffix): m for m in report.measurements if m.name.endswith(suffix)}
        found.append(Run(name, batch, own, report.details["comparison"][str(batch)].get(name, "baseline")))
    return found


def benchmark_tables(report: Report) -> list[Table]:
    """The runs as two tables, quality with latency and costs; speed is against the first runner at the same batch size."""
    data = report.details["data"]
    title = f"Benchmark on {data['name']}, {data['split']} split, {data['num_samples']} images"
    told = f"speed against {report.details['baseline']}; same: share of images answered like {report.details['reference']}"
    return [
        _table(report, title, COLUMNS[:NUM_FIRST], "\n".join([told, *warnings(report)])),
        _table(report, "Benchmark: costs", ("runner", "batch", *COLUMNS[NUM_FIRST:]), ""),
    ]


def _table(report: Report, title: str, columns: Sequence[str], caption: str) -> Table:
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("runner", "speed") else "right", no_wrap=True)
    runs = runs_of(report)
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        cells = dict(zip(COLUMNS, run.cells(), strict=True))
        ends = following is not None and following.batch != run.batch
        table.add_row(*(Text(cells[c], style=STYLES[run.said] if c == "speed" else "") for c in columns), end_section=ends)
    return table


def warnings(report: Report) -> list[str]:
    """What a reader must know before trusting the times."""
    runs = report.details["runs"]
    said = []
    busy = [f"{run['runner']} (batch {run['batch']})" for run in runs if run["contended"]]
    unsteady = [f"{run['runner']} (batch {run['batch']})" for run in runs if not run["steady"]]
    if busy:
        said.append(f"the machine was busy: most calls of {', '.join(busy)} were disturbed; repeat when it is quiet")
    if unsteady:
        said.append(f"still changing after warm-up: {', '.join(unsteady)}")
    if any(run["threads"] > 1 for run in runs):
        said.append("with more than one thread a disturbed call cannot be told for sure")
    return said
