"""The report page's charts, as SVG in data URIs: the page needs no network and prints sharp.

Old is grey and new is blue everywhere. Colours are from Okabe and Ito's set, which colour-blind readers can tell apart, and
none carries a meaning alone. Figures are made without pyplot, so nothing global is touched.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from toolkit.release.quantities import TITLES, Row

OLD, NEW = "#6b7280", "#0072b2"
BETTER, WORSE, SAME = "#00795c", "#c8500a", "#6b7280"
INK, GRID = "#1f2933", "#e3e7ec"
MAX_NUMBERED_LABELS = 12

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "svg.hashsalt": "model-upgrade-toolkit",
}


def reliability_figure(bins: Sequence[Mapping[str, Any]], *, colour: str, ece: float | None, start: float = 0.0) -> str:
    """Accuracy against confidence, from `start`, with the number of samples a bin below; the diagonal is perfect."""
    figure, (top, bottom) = blank_figure(3.5, 3.9, rows=2, heights=(4, 1))
    lower = np.array([b["lower"] for b in bins])
    width = bins[0]["upper"] - bins[0]["lower"]
    top.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    top.bar(lower, [b["accuracy"] for b in bins], width * 0.92, align="edge", color=colour, alpha=0.3, linewidth=0)
    confidence = [b["confidence"] for b in bins]
    top.plot(confidence, [b["accuracy"] for b in bins], color=colour, marker="o", markersize=4, linewidth=1.4)
    bottom.bar(lower, [b["count"] for b in bins], width * 0.92, align="edge", color=colour, alpha=0.55, linewidth=0)
    top.set(xlim=(start, 1.0), ylim=(0, 1.02), ylabel="share right")
    bottom.set(xlim=(start, 1.0), xlabel="confidence", ylabel="images")
    top.tick_params(labelbottom=False)
    if ece is not None:
        top.text(0.04, 0.95, f"ECE {ece:.3f}", transform=top.transAxes, va="top", fontsize=10)
    return data_uri(figure)


def roc_figure(curves: Mapping[str, Sequence[Sequence[float]]], *, areas: Mapping[str, float]) -> str:
    """ROC curves of old and new in one frame."""
    figure, (axes,) = blank_figure(3.9, 3.9)
    axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    for side, colour, style in (("baseline", OLD, "--"), ("candidate", NEW, "-")):
        points = np.array(curves[side])
        name = "old" if side == "baseline" else "new"
        label = f"{name}, area {areas[side]:.3f}" if side in areas else name
        axes.plot(points[:, 0], points[:, 1], color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false-positive rate", ylabel="true-positive rate", aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    return data_uri(figure)


def confusion_figure(counts: Sequence[Sequence[int]], *, labels: Sequence[str], colour: str) -> str:
    """Confusion matrix shaded by the share of each true class; counts stand in the cells up to 12 labels."""
    matrix = np.array(counts, float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.62 * len(labels) + 1.9, 3.3, 6.5))
    figure, (axes,) = blank_figure(size, size)
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", colour])
    axes.imshow(shares, cmap=shades, vmin=0, vmax=1)
    if len(labels) <= MAX_NUMBERED_LABELS:
        for (row, column), share in np.ndenumerate(shares):
            ink = "white" if share > 0.55 else INK
            text = f"{int(matrix[row, column])}\n{100 * share:.0f}%" if len(labels) <= 6 else f"{int(matrix[row, column])}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10 if len(labels) <= 6 else 7)
    step = 1 if len(labels) <= 24 else len(labels) // 12
    ticks = range(0, len(labels), step)
    names = [_shortened(labels[i]) for i in ticks]
    upright = max(len(name) for name in names) * len(names) <= 40
    axes.set_xticks(ticks, names, rotation=0 if upright else 90)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    return data_uri(figure)


def change_figure(found: Sequence[Row]) -> str:
    """Change of each score with its 95% interval, in points: right of the line the new model is better."""
    figure, (axes,) = blank_figure(4.8, 0.8 + 0.25 * len(found))
    for height, row in enumerate(reversed(found)):
        change = row.change
        if change is None or change.value is None:
            continue
        colour = {"better": BETTER, "worse": WORSE, "same": SAME}[row.direction]
        low, high = change.interval or (change.value, change.value)
        axes.plot([100 * low, 100 * high], [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(100 * change.value, height, marker="o", color=colour, markersize=6)
    names = [f"{TITLES.get(row.metric, row.metric)} · {row.name.where}" for row in reversed(found)]
    axes.set_yticks(range(len(found)), names)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(xlabel="change in points (×100), 95% interval", ylim=(-0.6, len(found) - 0.4))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return data_uri(figure)


def blank_figure(width: float, height: float, *, rows: int = 1, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure in the page's style, of `width` by `height` inches, with `rows` axes below each other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, 1, squeeze=False, height_ratios=list(heights))
    axes = [row[0] for row in grid]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=GRID, linewidth=0.7)
        each.set_axisbelow(True)
    return figure, axes


def data_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _shortened(label: str) -> str:
    return label if len(label) <= 14 else f"{label[:13]}…"
