"""The charts of the report page: confidence, every threshold, mistakes, and what changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from toolkit.release.chart import BETTER, INK, NEW, OLD, SAME, WORSE, Marks, blank_figure, inline_svg, styled
from toolkit.release.quantities import TITLES, Row, show_interval, show_value

MAX_NUMBERED_LABELS = 12
SIDES = {"baseline": ("old", OLD, "--", "s"), "candidate": ("new", NEW, "-", "o")}


@styled
def reliability_figure(bins: Sequence[Mapping[str, Any]], *, side: str, ece: float | None, start: float = 0.0) -> Markup:
    """Accuracy against confidence, from `start`, with the number of samples a bin below; the diagonal is perfect."""
    figure, (top, bottom) = blank_figure(3.5, 3.9, rows=2, heights=(4, 1))
    marks, (title, colour, _, _) = Marks(), SIDES[side]
    lower = np.array([b["lower"] for b in bins])
    width = bins[0]["upper"] - bins[0]["lower"]
    top.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    bars = top.bar(lower, [b["accuracy"] for b in bins], width * 0.92, align="edge", color=colour, alpha=0.3, linewidth=0)
    confidence = [b["confidence"] for b in bins]
    top.plot(confidence, [b["accuracy"] for b in bins], color=colour, marker="o", markersize=4, linewidth=1.4)
    counts = bottom.bar(lower, [b["count"] for b in bins], width * 0.92, align="edge", color=colour, alpha=0.55, linewidth=0)
    for one, *drawn in zip(bins, bars, counts, strict=True):
        images = f"{one['count']:,} image{'s' if one['count'] != 1 else ''}"
        said = f"{images}, {100 * one['confidence']:.1f}% sure on average, {100 * one['accuracy']:.1f}% right"
        what = f"confidence {one['lower']:.2f} to {one['upper']:.2f}"
        for bar in drawn:
            marks.add(bar, what, said)
        marks.point(top, one["confidence"], one["accuracy"], what, said)
    top.set(xlim=(start, 1.0), ylim=(0, 1.02), ylabel="share right")
    bottom.set(xlim=(start, 1.0), xlabel="confidence", ylabel="images")
    top.tick_params(labelbottom=False)
    if ece is not None:
        top.text(0.04, 0.95, f"ECE {ece:.3f}", transform=top.transAxes, va="top", fontsize=10)
    return inline_svg(figure, name=f"reliability-{title}", alt=f"Reliability diagram of the {title} model", marks=marks)


@styled
def roc_figure(
    curves: Mapping[str, Sequence[Sequence[float]]], *, areas: Mapping[str, float], at: Mapping[str, Sequence[float]]
) -> Markup:
    """ROC curves of old and new in one frame, with each one's threshold `at` (false-positive rate, recall) as a mark.

    The marks carry `data-at`; two more, without ink, carry the frame's corners (0, 0) and (1, 1), so that a script can move
    the former about.
    """
    figure, (axes,) = blank_figure(3.9, 3.9)
    marks = Marks()
    axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    for side, (title, colour, style, marker) in SIDES.items():
        points = np.array(curves[side])
        label = f"{title}, area {areas[side]:.3f}" if side in areas else title
        axes.plot(points[:, 0], points[:, 1], color=colour, linestyle=style, linewidth=1.8, label=label)
        if side in at:
            (dot,) = axes.plot(*at[side], marker=marker, markersize=9, color=colour, markeredgecolor="white", zorder=5)
            marks.add(dot, at=side)
    for name, corner in (("origin", 0.0), ("unit", 1.0)):
        (dot,) = axes.plot(corner, corner, marker="o", markersize=1, color="none", linestyle="")
        marks.add(dot, at=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false-positive rate", ylabel="true-positive rate", aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    return inline_svg(figure, name="roc", alt="ROC curves of old and new", marks=marks)


@styled
def confusion_figure(counts: Sequence[Sequence[int]], *, labels: Sequence[str], side: str) -> Markup:
    """Confusion matrix shaded by the share of each true class; counts stand in the cells up to 12 labels."""
    matrix = np.array(counts, float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.62 * len(labels) + 1.9, 3.3, 6.5))
    figure, (axes,) = blank_figure(size, 0.88 * size)
    marks, (title, colour, _, _) = Marks(), SIDES[side]
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", colour])
    edges = np.arange(len(labels) + 1) - 0.5
    axes.pcolormesh(edges, edges, shares, cmap=shades, vmin=0, vmax=1)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlim=(-0.5, len(labels) - 0.5), aspect="equal")
    for (row, column), share in np.ndenumerate(shares):
        count, truth, answer = int(matrix[row, column]), labels[int(row)], labels[int(column)]
        if len(labels) <= MAX_NUMBERED_LABELS:
            ink = "white" if share > 0.55 else INK
            text = f"{count}\n{100 * share:.0f}%" if len(labels) <= 6 else f"{count}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10 if len(labels) <= 6 else 7)
        if count:
            cell = axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor="none"))
            said = f"{count:,} image{'s' if count != 1 else ''}, {100 * share:.1f}% of {truth}"
            marks.add(cell, f"{truth}, answered {answer}", said, truth=truth, answer=answer, side=side)
    _name_labels(axes, labels)
    return inline_svg(figure, name=f"confusion-{title}", alt=f"Confusion matrix of the {title} model", marks=marks)


def _name_labels(axes: Any, labels: Sequence[str]) -> None:
    step = 1 if len(labels) <= 24 else len(labels) // 12
    ticks = range(0, len(labels), step)
    names = [_shortened(labels[i]) for i in ticks]
    upright = max(len(name) for name in names) * len(names) <= 40
    axes.set_xticks(ticks, names, rotation=0 if upright else 90)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)


@styled
def change_figure(found: Sequence[Row]) -> Markup:
    """Change of each score with its 95% interval, in points: right of the line the new model is better."""
    figure, (axes,) = blank_figure(4.8, 0.8 + 0.25 * len(found))
    marks = Marks()
    for height, row in enumerate(reversed(found)):
        change = row.change
        if change is None or change.value is None:
            continue
        colour = {"better": BETTER, "worse": WORSE, "same": SAME}[row.direction]
        low, high = change.interval or (change.value, change.value)
        (line,) = axes.plot([100 * low, 100 * high], [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
        (dot,) = axes.plot(100 * change.value, height, marker="o", color=colour, markersize=6)
        said = f"{show_value(row.baseline)} to {show_value(row.candidate)}: {show_value(change)} ({show_interval(change)})"
        for drawn in (line, dot):
            marks.add(drawn, f"{TITLES.get(row.metric, row.metric)}, {row.name.where}", said)
    names = [f"{TITLES.get(row.metric, row.metric)} · {row.name.where}" for row in reversed(found)]
    axes.set_yticks(range(len(found)), names)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(xlabel="change in points (×100), 95% interval", ylim=(-0.6, len(found) - 0.4))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    alt = "Change of each score with its interval; the numbers are in the tables."
    return inline_svg(figure, name="changes", alt=alt, marks=marks)


def _shortened(label: str) -> str:
    return label if len(label) <= 14 else f"{label[:13]}…"
