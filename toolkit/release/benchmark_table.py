"""The benchmark in the terminal and on its page: one row a runner and batch size, numbers and verdict side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from toolkit.bundle import Measurement, Report

STYLES = {"faster": "green", "slower": "red", "no difference": "dim", "baseline": "dim"}
WORDS = ("runner", "speed")
"""The columns that hold words; all others hold numbers."""

SPEED = ("runner", "batch", "accuracy", "same", "p50 ms", "p95", "p99", "ratio (95%)", "speed")
COSTS = ("runner", "batch", "images/s", "RAM MiB", "GPU MiB", "file MiB", "load ms", "first call ms", "floors")

FLOORS = "floors: the worst image's error, in float32's own distance from float64; a sound float32 graph stays within 8"


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

    def number_or(self, metric: str, otherwise: float) -> float:
        """The value of a metric, or `otherwise` where it was not measured."""
        return self.number(metric) if metric in self.measurements else otherwise

    def show(self, metric: str, digits: int) -> str:
        """The value of a metric with so many digits, or a dash where it was not measured."""
        return f"{self.number(metric):,.{digits}f}" if metric in self.measurements else "-"

    @property
    def ratio(self) -> str:
        """The ratio of medians to the baseline's with its interval, or a dash."""
        found = self.measurements.get("latency_ratio")
        if found is None or found.interval is None:
            return "-"
        return f"{found.value:.2f} ({found.interval[0]:.2f}–{found.interval[1]:.2f})"

    def cells(self) -> dict[str, str]:
        """The row as text, by column."""
        return {
            "runner": self.runner,
            "batch": str(self.batch),
            "accuracy": f"{self.number('accuracy'):.1%}",
            "same": f"{self.number('top1_agreement'):.1%}",
            "p50 ms": self.show("latency_median", 2),
            "p95": self.show("latency_p95", 2),
            "p99": self.show("latency_p99", 2),
            "ratio (95%)": self.ratio,
            "speed": self.said,
            "images/s": self.show("throughput", 0),
            "RAM MiB": self.show("memory", 1),
            "GPU MiB": self.show("device_memory", 1),
            "file MiB": self.show("size", 1),
            "load ms": self.show("load_time", 0),
            "first call ms": self.show("first_call", 1 if self.number("first_call") < 100 else 0),
            "floors": self.show("floors", 1 if self.number_or("floors", 0) < 100 else 0),
        }


def runs_of(report: Report) -> list[Run]:
    """The runs of a report `benchmark`, by batch size in the order of the plan."""
    found = []
    for facts in report.details["runs"]:
        name, batch = facts["runner"], facts["batch"]
        suffix = f".{name}[batch={batch}]"
        own = {m.name.removesuffix(suffix): m for m in report.measurements if m.name.endswith(suffix)}
        found.append(Run(name, batch, own, report.details["comparison"][str(batch)].get(name, "baseline")))
    return found


def tables_of(report: Report) -> dict[str, list[str]]:
    """The columns of the two tables by title: quality with latency, and costs; the GPU's only where one was used."""
    on_gpu = any("device_memory" in run.measurements for run in runs_of(report))
    return {"Quality and speed": list(SPEED), "Costs": [name for name in COSTS if on_gpu or name != "GPU MiB"]}


def benchmark_tables(report: Report) -> list[Table]:
    """The runs as two tables; speed is against the first runner at the same batch size."""
    data = report.details["data"]
    title = f"Benchmark on {data['name']}, {data['split']} split, {data['num_samples']} images"
    left_out = [f"left out: {reason}" for reason in report.details["left_out"]]
    captions = [explanation(report), "\n".join([FLOORS, *headlines(report), *left_out, *warnings(report)])]
    return [
        _table(report, f"{title}: {part.lower()}", columns, caption)
        for (part, columns), caption in zip(tables_of(report).items(), captions, strict=True)
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
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right", no_wrap=True)
    runs = runs_of(report)
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        cells = run.cells()
        ends = following is not None and following.batch != run.batch
        table.add_row(*(Text(cells[c], style=STYLES[run.said] if c == "speed" else "") for c in columns), end_section=ends)
    return table


def headlines(report: Report) -> list[str]:
    """For each batch size, which runner is the fastest and by how much, if any is."""
    runs, baseline = runs_of(report), report.details["baseline"]
    found = []
    for batch in report.details["batch"]:
        faster = [run for run in runs if run.batch == batch and run.said == "faster"]
        if not faster:
            found.append(f"batch {batch}: no runner is faster than {baseline}")
            continue
        best = min(faster, key=lambda run: run.number("latency_ratio"))
        found.append(f"batch {batch}: fastest is {best.runner}, {best.ratio} of {baseline}'s median latency")
    return found


def explanation(report: Report) -> str:
    """What two of the columns mean."""
    return f"speed against {report.details['baseline']}; same: share of images answered like {report.details['reference']}"


def warnings(report: Report) -> list[str]:
    """What a reader must know before trusting the times: what disturbed the times."""
    runs = report.details["runs"]
    said = []
    busy = [f"{run['runner']} (batch {run['batch']})" for run in runs if run["contended"]]
    unsteady = [f"{run['runner']} (batch {run['batch']})" for run in runs if not run["steady"]]
    if busy:
        said.append(
            f"busy machine: most calls were disturbed in a launch of {', '.join(busy)}, which counts with its processor time; "
            "tails are longer than told, repeat when it is quiet"
        )
    if unsteady:
        said.append(f"still changing after warm-up: {', '.join(unsteady)}")
    if any(run["threads"] > 1 for run in runs):
        said.append("with more than one thread a disturbed call cannot be told for sure")
    return said
