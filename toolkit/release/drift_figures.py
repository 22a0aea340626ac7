"""The charts of drift and monitoring, in the page's style: reference grey, new blue."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from toolkit.release.chart import NEW, OLD, WORSE, Marks, blank_figure, inline_svg, styled

COLOURS = ("#0072b2", "#c8500a", "#00795c", "#8a6100", "#7b3f98", "#6b7280")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


@styled
def histogram_figure(shares: Mapping[str, Sequence[float]], *, name: str) -> Markup:
    """Shares of images in bins of one statistic, before and now."""
    figure, (axes,) = blank_figure(3.5, 2.3)
    edges = np.asarray(shares["edges"])
    for side, colour, label in (("reference", OLD, "reference"), ("new", NEW, "new")):
        values = 100 * np.asarray(shares[side])
        axes.stairs(values, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(values, edges, color=colour, linewidth=1.4, label=label, linestyle="--" if side == "reference" else "-")
    marks = Marks()
    for low, high, before, now in zip(edges[:-1], edges[1:], shares["reference"], shares["new"], strict=True):
        said = f"{100 * before:.1f}% of the reference, {100 * now:.1f}% of the new images"
        marks.add(axes.axvspan(low, high, color="none"), f"{name} {low:.3g} to {high:.3g}", said)
    highest = 100 * max(max(shares["reference"]), max(shares["new"]), 1e-3)
    axes.set(xlabel=name.lower(), ylabel="% of images", ylim=(0, 1.35 * highest))
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    alt = f"{name} of reference and new images; the means are in the table."
    return inline_svg(figure, name=f"histogram-{name.lower().replace(' ', '-')}", alt=alt, marks=marks)


@styled
def cloud_figure(points: Mapping[str, Any]) -> Markup:
    """Images as points by the two components that moved most."""
    figure, (axes,) = blank_figure(4.2, 3.4)
    for side, colour, marker in (("reference", OLD, "o"), ("new", NEW, "^")):
        found = np.atleast_2d(np.asarray(points[side], float))
        y = found[:, 1] if found.shape[1] > 1 else np.zeros(len(found))
        axes.plot(found[:, 0], y, marker, color=colour, markersize=3.2, alpha=0.55, markeredgewidth=0, label=side)
    middle = np.quantile(np.concatenate([np.atleast_2d(points[side]) for side in ("reference", "new")]), [0.01, 0.99], axis=0)
    margin = 0.15 * (middle[1] - middle[0]) + 1e-6  # a black image would squeeze all others into one spot
    axes.set_xlim(middle[0][0] - margin[0], middle[1][0] + margin[0])
    axes.set_ylim(middle[0][-1] - margin[-1], middle[1][-1] + margin[-1])
    axes.set(xlabel=f"component {points['axes'][0]}", ylabel=f"component {points['axes'][-1]}")
    axes.legend(frameon=False, fontsize=8)
    return inline_svg(figure, name="cloud", alt="Reference and new images by two components of the embedding")


@styled
def evidence_figure(points: Sequence[Mapping[str, Any]], *, alarm_at: float, titles: Mapping[str, str]) -> Markup:
    """The evidence of each test over the samples seen, on a logarithmic scale, with the line that alarms."""
    figure, (axes,) = blank_figure(6.4, 3.2)
    marks = Marks()
    seen = [point["num_samples"] for point in points]
    for index, (name, title) in enumerate(titles.items()):
        values = [point["log10_e"].get(name) for point in points]
        if any(value is not None for value in values):
            shown = [np.nan if value is None else min(max(value, -3.0), 4 * alarm_at) for value in values]
            marker = "o" if len(points) == 1 else ""
            axes.plot(seen, shown, color=COLOURS[index], linestyle=DASHES[index], marker=marker, linewidth=1.5, label=title)
            for samples, value, height in zip(seen, values, shown, strict=True):
                if value is not None:
                    marks.point(axes, samples, height, f"{title}, after {samples:,} samples", f"evidence 10^{value:.2f}")
    axes.axhline(alarm_at, color=WORSE, linewidth=1)
    axes.annotate("alarm", (0.005, alarm_at), xycoords=("axes fraction", "data"), va="bottom", color=WORSE, fontsize=8)
    axes.set(xlabel="samples", ylabel="evidence, log10")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    alt = "Evidence of each test over the samples seen; the values are in the table."
    return inline_svg(figure, name="evidence", alt=alt, marks=marks)


@styled
def shares_figure(points: Sequence[Mapping[str, Any]], *, labels: Sequence[str], reference: Sequence[int]) -> Markup:
    """The share of each label among the answers of each batch, with the reference's share as a line of dashes."""
    figure, (axes,) = blank_figure(6.4, 2.8)
    marks = Marks()
    seen = [point["num_samples"] for point in points if point["batch"].get("answers")]
    counts = np.array([point["batch"]["answers"] for point in points if point["batch"].get("answers")], float)
    order = np.argsort(-counts.sum(axis=0))[: len(COLOURS)]
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    total = max(sum(reference), 1)
    for index, k in enumerate(order):
        axes.plot(seen, shares[:, k], color=COLOURS[index], marker="o", markersize=2.5, linewidth=1.2, label=labels[k])
        for samples, share in zip(seen, shares[:, k], strict=True):
            said = f"{share:.1f}% of the batch, {100 * reference[k] / total:.1f}% in the reference"
            marks.point(axes, samples, share, f"{labels[k]}, after {samples:,} samples", said)
        axes.axhline(100 * reference[k] / total, color=COLOURS[index], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlabel="samples", ylabel="% of a batch's answers", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return inline_svg(figure, name="shares", alt="Shares of the labels over the samples seen", marks=marks)
