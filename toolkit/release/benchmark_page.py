"""The benchmark as one HTML file: the table, how latencies are spread, and accuracy against latency. No network."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.ticker import NullFormatter, ScalarFormatter

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.release import quantities
from toolkit.release.benchmark_table import COLUMNS, Run, runs_of, warnings
from toolkit.release.page_figures import blank_figure, data_uri

COLOURS = ("#6b7280", "#0072b2", "#c8500a", "#00795c", "#8a6100", "#7b3f98")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")


def write_benchmark(report: Report, path: Path) -> None:
    """Write the page of a report `benchmark` to `path`."""
    write_atomic(path, render_benchmark(report).encode())


def render_benchmark(report: Report) -> str:
    """The page of a report `benchmark`."""
    runs = runs_of(report)
    details = report.details
    samples = {(facts["runner"], facts["batch"]): facts["samples_ms"] for facts in details["runs"]}
    figures = {
        batch: spread_figure([(run.runner, samples[run.runner, batch]) for run in runs if run.batch == batch])
        for batch in details["batch"]
    }
    context = {
        "digest": report.subjects[0],
        "details": details,
        "columns": COLUMNS,
        "runs": runs,
        "facts": details["runs"],
        "warnings": warnings(report),
        "spread": figures,
        "accuracy": accuracy_figure(runs),
        "environment": report.environment,
        "q": quantities,
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("benchmark.html.j2").render(context)


def spread_figure(samples: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Share of calls that took at most so many milliseconds, a curve a runner."""
    figure, (axes,) = blank_figure(4.6, 3.3)
    for index, (name, times_ms) in enumerate(samples):
        ordered = np.sort(times_ms)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, share, where="post", label=name, color=_colour(index), linestyle=DASHES[index % len(DASHES)])
    axes.set(ylim=(0, 1.02), xlabel="milliseconds a call (logarithmic)", ylabel="share of calls", xscale="log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=7)
    low, high = min(min(times) for _, times in samples), max(max(times) for _, times in samples)
    if high / low > 3:
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", frameon=False)
    return data_uri(figure)


def accuracy_figure(runs: Sequence[Run]) -> str:
    """Accuracy with its 95% interval against the median latency an image, a mark a runner and batch size."""
    figure, (axes,) = blank_figure(4.6, 3.3)
    names = list(dict.fromkeys(run.runner for run in runs))
    batches = list(dict.fromkeys(run.batch for run in runs))
    for run in runs:
        index = names.index(run.runner)
        value, accuracy = run.number("latency_median") / run.batch, run.measurements["accuracy"]
        low, high = accuracy.interval or (run.number("accuracy"),) * 2
        axes.plot([value, value], [low, high], color=_colour(index), linewidth=1, alpha=0.6)
        marker = MARKERS[batches.index(run.batch) % len(MARKERS)]
        label = f"{run.runner}, batch {run.batch}"
        axes.plot(value, run.number("accuracy"), marker=marker, markersize=6, linestyle="", color=_colour(index), label=label)
    axes.set(xlabel="median milliseconds an image", ylabel="accuracy")
    axes.set_xlim(left=0)
    axes.legend(loc="best", frameon=False, fontsize=8)
    return data_uri(figure)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
