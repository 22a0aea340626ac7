"""The benchmark as one HTML file: the table, how latencies are spread, and accuracy against latency. No network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.release import quantities
from toolkit.release.benchmark_table import WORDS, Run, explanation, headlines, runs_of, tables_of, warnings
from toolkit.release.chart import INK, Marks, blank_figure, inline_svg, styled
from toolkit.release.templates import render_template

COLOURS = ("#6b7280", "#0072b2", "#c8500a", "#00795c", "#8a6100", "#7b3f98")
DASHES = ("-", "--", "-.", ":")
FAR_APART = 8
TOLD_PERCENT = (5, 25, 50, 75, 95, 99)
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
        batch: spread_figure([(run.runner, samples[run.runner, batch]) for run in runs if run.batch == batch], batch=batch)
        for batch in details["batch"]
    }
    context = {
        "digest": report.subjects[0],
        "details": details,
        "tables": tables_of(report),
        "words": WORDS,
        "headlines": headlines(report),
        "explanation": explanation(report),
        "runs": runs,
        "facts": details["runs"],
        "settings": {facts["runner"]: facts["settings"] for facts in details["runs"]},
        "warnings": warnings(report),
        "left_out": details["left_out"],
        "spread": figures,
        "accuracy": accuracy_figure(runs),
        "environment": report.environment,
        "q": quantities,
    }
    return render_template("benchmark.html.j2", **context)


@styled
def spread_figure(samples: Sequence[tuple[str, Sequence[float]]], *, batch: int) -> Markup:
    """Share of calls that took at most so many milliseconds, a curve a runner; logarithmic where they lie far apart."""
    figure, (axes,) = blank_figure(4.6, 3.7)
    marks = Marks()
    for index, (name, times_ms) in enumerate(samples):
        ordered = np.sort(times_ms)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, share, where="post", label=name, color=_colour(index), linestyle=DASHES[index % len(DASHES)])
        for percent in TOLD_PERCENT:
            value = float(np.quantile(ordered, percent / 100, method="inverted_cdf"))
            marks.point(axes, value, percent / 100, f"{name}, {percent}% of the calls", f"at most {value:.3g} ms")
    low, high = min(min(times) for _, times in samples), max(max(times) for _, times in samples)
    axes.set(ylim=(0, 1.02), xlabel="milliseconds a call", ylabel="share of calls")
    if high / low > FAR_APART:
        axes.set(xscale="log", xlabel="milliseconds a call (logarithmic)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    _legend_below(axes)
    return inline_svg(figure, name=f"spread-{batch}", alt=f"Latency distributions at batch {batch}", marks=marks)


@styled
def accuracy_figure(runs: Sequence[Run]) -> Markup:
    """Accuracy with its 95% interval against the median latency an image: a colour a runner, a mark a batch size."""
    figure, (axes,) = blank_figure(6.2, 3.9)
    marks = Marks()
    names = list(dict.fromkeys(run.runner for run in runs))
    batches = list(dict.fromkeys(run.batch for run in runs))
    for run in runs:
        colour, marker = _colour(names.index(run.runner)), MARKERS[batches.index(run.batch) % len(MARKERS)]
        value, percent = run.number("latency_median") / run.batch, 100 * run.number("accuracy")
        low, high = run.measurements["accuracy"].interval or (percent / 100,) * 2
        axes.plot([value, value], [100 * low, 100 * high], color=colour, linewidth=1, alpha=0.45)
        axes.plot(value, percent, marker=marker, markersize=6.5, linestyle="", color=colour)
        said = f"{value:.3g} ms an image, {percent:.1f}% right ({100 * low:.1f} to {100 * high:.1f}%)"
        marks.point(axes, value, percent, f"{run.runner}, batch {run.batch}", said)
    for index, name in enumerate(names):
        axes.plot([], [], color=_colour(index), linewidth=3, label=name)
    for marker, batch in zip(MARKERS, batches, strict=False):
        axes.plot([], [], color=INK, marker=marker, markersize=6.5, linestyle="", label=f"batch {batch}")
    axes.set(xlabel="median milliseconds an image", ylabel="accuracy, %")
    axes.set_xlim(left=0)
    _legend_below(axes)
    return inline_svg(figure, name="accuracy", alt="Accuracy against latency", marks=marks)


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=8, handlelength=2.2)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
