"""Which runtime should serve this bundle? The same images through every runner, precision and batch size, side by side.

Each runner lives in a process of its own (`benchmark_process`), so that its memory is its own; the processes of one batch
size stand side by side and are asked in turns, in a new order each round, so that a busy neighbour slows all of them alike.
They are started afresh several times, because a process keeps the luck it started with (`benchmark_launch`). The report
`benchmark` sets no limits. Its verdicts on speed may be `no difference` (`benchmark_timing`).

Legend: N images, K labels, R rounds.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from toolkit.bundle import WEIGHTS, Bundle, Measurement, Report, environment
from toolkit.checks.benchmark_launch import Launched, launch
from toolkit.checks.benchmark_plan import BenchmarkPlan, Entry, Timing
from toolkit.checks.benchmark_quality import Reference, exact_reference, quality
from toolkit.checks.benchmark_timing import QUANTILES, compared, quantile
from toolkit.checks.benchmark_worker import Task
from toolkit.checks.evaluate import describe_data
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import UsageError
from toolkit.models import restore

MAX_IMAGES = 512
METHOD = {
    "latency": "interleaved rounds, one timed call a round after one untimed, from float32 pixels on the host to logits on the "
    "host (on a GPU with both copies, which also wait for it); calls with less than 0.9 of a core are dropped, on a GPU none; "
    "where most had less, the quieter half counts with its processor time",
    "warm_up": "calls until the medians of three windows (each of 5 calls and 50 ms at least) lie within 5%",
    "interval": "95%; of a ratio: Student's t over the launches, each with new processes and a ratio of medians of its own; "
    "of a latency: bootstrap over launches and their calls",
    "memory": "peak resident memory of the runner's own process, less what it held with modules imported and images loaded; "
    "compiling counts",
    "load_time": "from the bundle's files (in the page cache) to a runner, without imports and without the first call",
    "first_call": "the first call of that batch size; for compile it is the compilation, from an empty cache",
    "error": "against torch float64 on the same images; one floor is what float32 itself is off (the worst of the images)",
}


def benchmark(bundle: Bundle, images: ImageSet, *, plan: BenchmarkPlan, split: str = "test", seed: int = 0) -> Report:
    """Run `bundle` through all that `plan` names, on one split of `images` (at most 512, evenly chosen).

    Measurements are named `<metric>.<runner>[batch=<size>]`; `details.comparison` holds the verdicts by batch and runner.
    Raises `UsageError` for an empty split, `InputRefused` for labels that differ or a bundle without what a runner needs,
    `EnvironmentProblem` for a runner that cannot work on this machine.
    """
    pixels = load_pixels(images.split(split), bundle.manifest.preprocessing)
    if not len(pixels):
        raise UsageError(f"{images.name} has no images in its {split} split: choose another split.")
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_IMAGES)).round().astype(int))
    pixels = pixels.take(chosen.tolist())
    entries, left_out = plan.entries(bundle)
    reference, imports = _reference(bundle, pixels)
    measurements: list[Measurement] = []
    details: dict[str, Any] = {
        "data": describe_data(images, split, len(pixels)),
        "method": METHOD,
        "rounds": plan.timing.rounds,
        "launches": plan.timing.launches,
        "baseline": entries[0].name,
        "runners": {
            entry.name: {"kind": entry.kind, "device": entry.device, "precision": entry.precision} for entry in entries
        },
        "left_out": left_out,
        "batch": list(plan.batch),
        "comparison": {},
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        places = {name: str(Path(folder, f"{name}.npy")) for name in ("images", "logits")}
        np.save(places["images"], pixels.images_NCHW.numpy(), allow_pickle=False)
        task = Task(
            str(bundle.path.parents[1]), bundle.digest, "", 1, plan.timing.threads, **places, compiled=folder, imports=imports
        )
        for batch in plan.batch:
            by_entry = _launched(replace(task, batch=batch), entries, plan.timing, seed=seed)
            for entry, launches in by_entry.items():
                where, logits_NK = f"{entry.name}[batch={batch}]", launches[0].logits_NK
                assert logits_NK is not None
                reference = reference or Reference(logits_NK, f"{entry.name}, batch {batch}")
                measurements += quality(logits_NK, pixels, bundle.manifest.labels, reference, where)
                measurements += _costs(launches, batch, where, size_bytes=entry.size_bytes(bundle), seed=seed)
                details["runs"].append(_record(entry, batch, launches))
            said = compared({entry.name: [each.times_ms_R for each in launches] for entry, launches in by_entry.items()})
            details["comparison"][str(batch)] = {name: one.verdict for name, one in said.items()}
            measurements += [
                Measurement(f"latency_ratio.{name}[batch={batch}]", one.ratio, "1", one.interval, plan.timing.launches)
                for name, one in said.items()
            ]
    details["reference"] = reference.name if reference else ""
    return Report("benchmark", (bundle.digest,), "pass", tuple(measurements), details, environment())


def _reference(bundle: Bundle, pixels: Pixels) -> tuple[Reference | None, tuple[str, ...]]:
    """The float64 logits where the bundle has a module, and the module that must be imported to build it again."""
    if not bundle.has(WEIGHTS):
        return None, ()
    net = restore(bundle)
    return exact_reference(net, bundle.manifest.preprocessing, pixels), (type(net).__module__,)


def _launched(task: Task, entries: Sequence[Entry], timing: Timing, *, seed: int) -> dict[Entry, list[Launched]]:
    """Every entry's launches; the first one answers the images as well."""
    rounds = -(-timing.rounds // timing.launches)
    console = Console(stderr=True)
    numbers = track(
        range(timing.launches),
        description=f"batch {task.batch}: launches",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    launches = [launch(task, entries, rounds=rounds, seed=seed + index, logits=index == 0) for index in numbers]
    return dict(zip(entries, map(list, zip(*launches, strict=True)), strict=True))


def _costs(launches: Sequence[Launched], batch: int, where: str, *, size_bytes: int, seed: int) -> list[Measurement]:
    """Latency, throughput, memory, size and load time of one runner at one batch size."""
    samples_ms = [each.times_ms_R[~np.isnan(each.times_ms_R)] for each in launches]
    num_kept, first = sum(map(len, samples_ms)), launches[0].facts
    quantiles = {metric: quantile(samples_ms, share, seed=seed) for metric, share in QUANTILES.items()}
    found = [Measurement(f"{metric}.{where}", value, "ms", around, num_kept) for metric, (value, around) in quantiles.items()]
    load_ms = float(np.median([each.facts["load_ms"] for each in launches]))
    found += [
        Measurement(f"throughput.{where}", 1e3 * batch / quantiles["latency_median"][0], "images/s", n=num_kept),
        Measurement(f"memory.{where}", (first["peak_bytes"] - first["before_bytes"]) / 2**20, "MiB"),
        Measurement(f"size.{where}", size_bytes / 2**20, "MiB"),
        Measurement(f"load_time.{where}", load_ms, "ms", n=len(launches)),
        Measurement(f"first_call.{where}", first["first_call_ms"], "ms"),
    ]
    if first["device_bytes"] is not None:
        found.append(Measurement(f"device_memory.{where}", first["device_bytes"] / 2**20, "MiB"))
    return found


def _record(entry: Entry, batch: int, launches: Sequence[Launched]) -> dict[str, Any]:
    """What the page and a later reader need of a runner's launches at one batch size."""
    times_ms = np.concatenate([each.times_ms_R for each in launches])
    kept, facts = times_ms[~np.isnan(times_ms)], [each.facts for each in launches]
    return {
        "runner": entry.name,
        "batch": batch,
        "threads": facts[0]["threads"],
        "settings": facts[0]["settings"],
        "num_launches": len(launches),
        "num_warm_calls": [fact["num_warm_calls"] for fact in facts],
        "steady": all(fact["steady"] for fact in facts),
        "num_calls": len(times_ms),
        "num_dropped": len(times_ms) - len(kept),
        "contended": any(fact["contended"] for fact in facts),
        "samples_ms": kept.round(4).tolist(),
    }
