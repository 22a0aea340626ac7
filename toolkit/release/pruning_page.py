"""The pruning as one HTML file: what was won, where channels went, and what more or less of it would cost. No network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.release import quantities
from toolkit.release.chart import NEW, OLD, WORSE, Marks, blank_figure, inline_svg, styled
from toolkit.release.templates import render_template

MOMENTS = {
    "baseline": "unpruned",
    "after_surgery": "channels removed",
    "after_batchnorm": "BatchNorm re-estimated",
    "candidate": "recovered",
}
CHOSEN = "#c8500a"
MAX_BARS = 60


def write_pruning(report: Report, path: Path) -> None:
    """Write the page of a report `pruning` to `path`."""
    write_atomic(path, render_pruning(report).encode())


def render_pruning(report: Report) -> str:
    """The page of a report `pruning`."""
    details = report.details
    curve, scores = list(details.get("curve", [])), _scores(report)
    context = {
        "report": report,
        "details": details,
        "scores": scores,
        "moments": {moment: title for moment, title in MOMENTS.items() if any(moment in found for found in scores.values())},
        "limits": quantities.limited(report),
        "channels": channels_figure(details["channels"]),
        "sensitivity": sensitivity_figure(details["sensitivity"]) if details.get("sensitivity") else None,
        "against_macs": curve_figure(curve, report, by="macs"),
        "against_latency": curve_figure(curve, report, by="latency"),
        "q": quantities,
    }
    return render_template("pruning.html.j2", **context)


def _scores(report: Report) -> dict[str, dict[str, float | None]]:
    """Validation scores by name and moment."""
    found: dict[str, dict[str, float | None]] = {}
    for measurement in report.measurements:
        name, _, rest = measurement.name.partition(".")
        moment = rest.removesuffix("[split=val]")
        if moment in MOMENTS and rest.endswith("[split=val]"):
            found.setdefault(name, {})[moment] = measurement.value
    return found


@styled
def channels_figure(channels: Mapping[str, Sequence[int]]) -> Markup:
    """Output channels of each layer before (outline) and after (filled), in the order the layers stand in."""
    layers = list(channels.items())
    figure, (axes,) = blank_figure(8.6, 2.9)
    at = np.arange(len(layers))
    axes.bar(at, [after for _, (_, after) in layers], width=0.9, color=NEW, alpha=0.75, linewidth=0, label="after")
    full = [before for _, (before, _) in layers]
    outlines = axes.bar(at, full, width=0.9, color="none", edgecolor=OLD, linewidth=0.7, label="before")
    marks = Marks()
    for (name, (before, after)), outline in zip(layers, outlines, strict=True):
        marks.add(outline, name, f"{after:,} of {before:,} channels")
    axes.set(ylabel="output channels", xlabel="layers, from the image to the logits")
    if len(layers) <= MAX_BARS:
        axes.set_xticks(at, [name for name, _ in layers], rotation=90, fontsize=6)
        axes.set_xlabel("")
    else:
        axes.set_xticks([])
    axes.legend(loc="upper left", frameon=False)
    return inline_svg(figure, name="channels", alt="Channels of each layer before and after", marks=marks)


@styled
def sensitivity_figure(groups: Sequence[Mapping[str, Any]]) -> Markup:
    """The rise of the loss when half of a group goes, one bar a group."""
    shown = list(groups)
    figure, (axes,) = blank_figure(8.6, 2.9)
    at = np.arange(len(shown))
    bars = axes.bar(at, [one["loss_rise"] for one in shown], width=0.85, color=WORSE, alpha=0.75, linewidth=0)
    marks = Marks()
    for one, bar in zip(shown, bars, strict=True):
        marks.add(bar, f"{one['group']} ({one['channels']:,} channels)", f"the loss rises by {one['loss_rise']:.4f}")
    axes.axhline(0, color=OLD, linewidth=0.8)
    names = [f"{one['group']} ({one['channels']})" for one in shown]
    axes.set_xticks(at, names if len(shown) <= MAX_BARS else [""] * len(shown), rotation=90, fontsize=6)
    axes.set(ylabel="rise of the loss, nats")
    return inline_svg(figure, name="sensitivity", alt="Sensitivity of each group", marks=marks)


@styled
def curve_figure(curve: Sequence[Mapping[str, float]], report: Report, *, by: str) -> Markup:
    """Validation accuracy against the share of the MACs or of the latency kept, with the parent and the chosen point."""
    quantity = {"macs": "macs.ratio", "latency": "latency_median.ratio"}[by]
    figure, (axes,) = blank_figure(4.2, 3.2)
    marks = Marks()
    if curve:
        ordered = sorted(curve, key=lambda point: point[by])
        label = "at other budgets, before recovery"
        axes.plot([p[by] for p in ordered], [p["accuracy"] for p in ordered], color=OLD, marker="o", markersize=4, label=label)
        for p in ordered:
            said = f"{100 * p['macs']:.0f}% of the MACs, {100 * p['latency']:.0f}% of the latency"
            marks.point(axes, p[by], p["accuracy"], said, f"accuracy {p['accuracy']:.4f} before recovery")
    share = report.value(quantity)
    points = (
        (1.0, "baseline", "unpruned", "s", OLD),
        (share, "after_batchnorm", "chosen, before recovery", "v", NEW),
        (share, "candidate", "chosen, recovered", "D", CHOSEN),
    )
    accuracies = _scores(report)["accuracy"]
    for x, moment, label, marker, colour in points:
        accuracy = accuracies.get(moment)
        if accuracy is None:  # pruned inside the recovery: there is no net between surgery and recovery
            continue
        axes.plot(x, accuracy, marker=marker, markersize=7, linestyle="", color=colour, label=label)
        marks.point(axes, x, accuracy, label, f"accuracy {accuracy:.4f} at {100 * x:.0f}%")
    words = {"macs": "share of the multiply-accumulates", "latency": "share of the latency, measured in onnxruntime"}
    axes.set(xlabel=words[by], ylabel="accuracy (validation)")
    axes.set_xlim(left=0)
    axes.margins(y=0.15)
    axes.legend(loc="best", frameon=False, fontsize=7)
    return inline_svg(figure, name=f"against-{by}", alt=f"Accuracy against the {words[by]}", marks=marks)
