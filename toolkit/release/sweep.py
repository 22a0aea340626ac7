"""What a sweep came to: a table and a plot of quality against latency, and the best bundle by name.

Quality is the best validation score of the training, latency one image on one thread, the bundles called in turns. Nothing is
said that the two cannot carry: on the front stand the bundles that no other one beats in both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from toolkit.backends import measure_latency, open_runner
from toolkit.bundle import Bundle, Report, Store
from toolkit.bundle.atomic import write_atomic
from toolkit.release.chart import NEW, OLD, blank_figure, styled, svg_bytes

TABLE, PLOT = "sweep.md", "pareto.svg"
ROUNDS = 30


@dataclass(frozen=True)
class Job:
    """One job of a sweep: what it set, the bundle it made, its quality (larger is better) by name, its latency in ms."""

    settings: str
    bundle: Bundle
    metric: str
    quality: float
    latency_ms: float
    on_front: bool = False


def summarise(made: Sequence[tuple[str, Bundle]], store: Store, directory: Path, console: Console) -> list[Job]:
    """Print the table of a sweep's bundles (settings and bundle), best first, and write table and plot into `directory`.

    Bundles without a validation score are left out; with fewer than two there is nothing to compare and nothing happens.
    """
    scored = [(text, bundle, *found) for text, bundle in made if (found := quality_of(store.reports(bundle.digest)))]
    if len({bundle.digest for _, bundle, _, _ in scored}) < 2 or len({metric for _, _, metric, _ in scored}) != 1:
        return []
    latency_ms = _latencies({bundle.digest: bundle for _, bundle, _, _ in scored})
    jobs = [Job(text, bundle, metric, value, latency_ms[bundle.digest]) for text, bundle, metric, value in scored]
    jobs = sorted((_judged(job, jobs) for job in jobs), key=lambda job: (-job.quality, job.latency_ms))
    console.print(_table(jobs))
    best = jobs[0]
    verdict = f"Best: bundle {best.bundle.short} ({best.settings}), {_named(best)} at {best.latency_ms:.2f} ms."
    console.print(verdict, soft_wrap=True)
    write_atomic(directory / TABLE, f"{_markdown(jobs)}\n\n{verdict}\n".encode())
    write_atomic(directory / PLOT, _plot(jobs))
    console.print(f"table: {directory / TABLE}\nplot: {directory / PLOT}", soft_wrap=True, highlight=False)
    return jobs


def quality_of(reports: Mapping[str, Report]) -> tuple[str, float] | None:
    """The validation score a bundle's training or pruning ended with, its sign such that larger is better."""
    for check, start in (("training", "val_"), ("pruning", "balanced_accuracy.candidate")):
        for entry in reports[check].measurements if check in reports else ():
            if entry.name.startswith(start) and entry.value is not None:
                name = entry.name.removeprefix("val_").partition(".")[0]
                return (f"-{name}", -entry.value) if name == "loss" else (name, entry.value)
    return None


def _latencies(bundles: dict[str, Bundle]) -> dict[str, float]:
    """The median milliseconds of one image on one thread, by digest."""

    def call(bundle: Bundle) -> Callable[[np.ndarray], object]:
        runner, spec = open_runner(bundle, threads=1), bundle.manifest.preprocessing
        image_NCHW = np.full((1, spec.num_channels, *spec.size_px), 127, dtype=np.float32)
        return lambda _: runner(image_NCHW)

    runners = {digest: call(bundle) for digest, bundle in bundles.items()}
    times_ms = measure_latency(runners, np.zeros((1, 1, 1, 1), dtype=np.float32), rounds=ROUNDS)
    return {digest: float(np.median(samples)) for digest, samples in times_ms.items()}


def _judged(job: Job, jobs: Sequence[Job]) -> Job:
    beaten = any(
        other.quality >= job.quality
        and other.latency_ms <= job.latency_ms
        and (other.quality, other.latency_ms) != (job.quality, job.latency_ms)
        for other in jobs
    )
    return Job(job.settings, job.bundle, job.metric, job.quality, job.latency_ms, on_front=not beaten)


def _named(job: Job) -> str:
    return f"{job.metric.replace('_', ' ')} {job.quality:.4f}"


def _table(jobs: Sequence[Job]) -> Table:
    table = Table(title="Sweep, best first", box=box.SIMPLE_HEAD)
    for column in ("settings", "bundle", jobs[0].metric.replace("_", " "), "ms an image", "front"):
        table.add_column(column, justify="right" if column.startswith("ms") else "left")
    for job in jobs:
        front = "✓" if job.on_front else ""
        table.add_row(job.settings, job.bundle.short, f"{job.quality:.4f}", f"{job.latency_ms:.2f}", front)
    return table


def _markdown(jobs: Sequence[Job]) -> str:
    lines = [f"| settings | bundle | {jobs[0].metric.replace('_', ' ')} | ms an image | front |", "|---|---|---|---|---|"]
    for job in jobs:
        front = "yes" if job.on_front else ""
        lines.append(f"| {job.settings} | {job.bundle.short} | {job.quality:.4f} | {job.latency_ms:.2f} | {front} |")
    return "\n".join(lines)


@styled
def _plot(jobs: Sequence[Job]) -> bytes:
    figure, (axes,) = blank_figure(5.6, 3.6)
    front = sorted((job for job in jobs if job.on_front), key=lambda job: job.latency_ms)
    axes.step([job.latency_ms for job in front], [job.quality for job in front], where="post", color=NEW, linewidth=1)
    for job in jobs:
        axes.plot(job.latency_ms, job.quality, "o" if job.on_front else "x", color=NEW if job.on_front else OLD)
        axes.annotate(job.settings, (job.latency_ms, job.quality), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="milliseconds an image (one thread)", ylabel=jobs[0].metric.replace("_", " "))
    axes.set_xlim(left=0)
    return svg_bytes(figure)
