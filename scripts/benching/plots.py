"""The tables of the docs as pictures."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHER, MUTED = "#1f6feb", "#8b949e", "#57606a"


@dataclass(frozen=True)
class Point:
    """One method on a plane: where it lies in each seed, and its mean."""

    name: str
    seeds: Sequence[tuple[float, float]]
    ours: bool

    @property
    def mean(self) -> tuple[float, float]:
        xs, ys = zip(*self.seeds, strict=True)
        return sum(xs) / len(xs), sum(ys) / len(ys)


def ratios(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A bar a row: the median ratio, its range over the rounds, and a tick at the target."""
    figure = Figure(figsize=(9, 0.42 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(rows):
        low, high = entry["range"]
        axes.barh(place, entry["ratio"], color=OTHER if entry["met"] is False else OURS, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        if entry["target"] is not None:
            axes.plot([entry["target"]] * 2, [place - 0.4, place + 0.4], color="#cf222e", linewidth=2)
    axes.set_yticks(range(len(rows)), [textwrap.fill(entry["what"], 52) for entry in rows], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("times as fast (line: range over rounds; red: target; grey: missed)", fontsize=8)
    _save(figure, axes, path)


def planes(cases: Mapping[str, Sequence[Sequence[Point]]], path: Path, *, x: Sequence[str], y: str) -> None:
    """A row of pictures a case: its methods against each `x`; small dots are seeds, the large one their mean."""
    figure = Figure(figsize=(4.6 * len(x), 3.1 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), len(x), squeeze=False, sharey="row")
    for line, (case, planes_of_case) in zip(grid, cases.items(), strict=True):
        for axes, label, points in zip(line, x, planes_of_case, strict=True):
            for point in points:
                colour = OURS if point.ours else OTHER
                axes.scatter(*zip(*point.seeds, strict=True), s=10, color=colour, alpha=0.5)
                axes.scatter(*point.mean, s=50, color=colour, edgecolor="black", linewidth=0.6)
                axes.annotate(point.name, point.mean, xytext=(5, 5), textcoords="offset points", fontsize=7)
            axes.set_xlabel(label)
            axes.set_title(case, fontsize=9, loc="left")
            axes.margins(x=0.25, y=0.15)
            _plain(axes)
        line[0].set_ylabel(y)
    figure.savefig(path, dpi=110)


def speedups(values: Mapping[str, float], path: Path, *, wanted: float) -> None:
    """A bar a network: how many times as fast it became, and what its multiply-accumulates promise."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(values)), list(values.values()), color=OURS, width=0.65)
    axes.axhline(wanted, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(values)), list(values), rotation=60, ha="right", fontsize=8)
    axes.set_ylabel(f"times as fast (dashed: {wanted:g}×)")
    _save(figure, axes, path)


def aims(rows: Sequence[Mapping[str, Any]], path: Path, *, near: float) -> None:
    """Shares of the latency: what was asked for (a tick with its margin), predicted (ring) and measured (dot, range)."""
    figure = Figure(figsize=(7, 0.45 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(rows):
        asked = entry["asked"]
        axes.barh(place, 2 * near * asked, left=(1 - near) * asked, height=0.8, color=OTHER, alpha=0.35, linewidth=0)
        axes.plot([asked] * 2, [place - 0.4, place + 0.4], color="#cf222e", linewidth=2, label="asked for, ±5%")
        axes.plot(entry["range"], [place, place], color="black", linewidth=1)
        axes.plot(entry["predicted"], place, "o", markersize=9, markerfacecolor="none", color=MUTED, label="predicted")
        axes.plot(entry["again"], place, "o", markersize=6, color=OURS, label="measured (line: range)")
    axes.set_yticks(range(len(rows)), [f"{entry['net']}, {entry['px']} px" for entry in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the unpruned latency")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:3], labels[:3], frameon=False, fontsize=7)
    _save(figure, axes, path)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    _plain(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
