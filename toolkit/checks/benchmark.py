"""Which runtime should serve this bundle? The same images through every runner and batch size: quality, agreement, cost.

Each runner lives in a process of its own (`benchmark_process`), so that its memory is its own; the processes of one batch
size stand side by side and are asked in turns, in a new order each round, so that a busy neighbour slows all of them alike.
The report `benchmark` sets no limits. Its verdicts on speed may be `no difference` (`benchmark_timing`).

Legend: N images, C channels, H height, W width, K labels, R rounds.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.backends import EagerRunner, runner_kinds
from toolkit.bundle import ONNX, WEIGHTS, Bundle, Measurement, Report, environment
from toolkit.checks.benchmark_quality import Reference, quality
from toolkit.checks.benchmark_timing import QUANTILES, compared, enough_quiet, kept_ms, quantile
from toolkit.checks.benchmark_worker import Task, Worker
from toolkit.checks.evaluate import describe_data
from toolkit.checks.predict import predict
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import UsageError, unknown_name
from toolkit.models import Deployed, restore

KIND_OF = {"onnxruntime": "onnx"}
MAX_IMAGES = 512
MOST_BLOCKS = 4
METHOD = {
    "latency": "interleaved rounds, one timed call a round after one untimed; calls with less than 0.9 of a core are dropped",
    "interval": "95%, percentile bootstrap over rounds",
    "memory": "peak resident memory of the runner's own process, less what it held with all modules imported and images loaded",
    "load_time": "from the bundle's files (in the page cache) to a runner, without imports and without the first call",
}


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is compared: runner names (the first is compared with; a repeated name is run again), batch sizes, rounds.

    `threads` is the number each process may use; a disturbed call can be told only with one.
    """

    runners: Sequence[str] = ("eager", "onnxruntime")
    batch: Sequence[int] = (1, 8)
    rounds: int = 100
    threads: int = 1

    def __post_init__(self) -> None:
        if len(self.runners) == 0 or len(self.batch) == 0 or min(self.batch) < 1 or self.rounds < 2 or self.threads < 1:
            raise UsageError(
                f"benchmark: runners {list(self.runners)}, batch {list(self.batch)}, rounds {self.rounds}, threads "
                f"{self.threads}; give at least one runner, batch sizes of at least 1, 2 rounds or more and 1 thread or more."
            )
        for runner in self.runners:
            if KIND_OF.get(runner, runner) not in runner_kinds():
                raise unknown_name("runner", runner, {*runner_kinds(), *KIND_OF})

    def kinds(self) -> dict[str, str]:
        """Runner kind by name; the second of a name is called `<name>-2`."""
        found: dict[str, str] = {}
        for index, runner in enumerate(self.runners):
            seen = list(self.runners[:index]).count(runner)
            found[f"{runner}-{seen + 1}" if seen else runner] = KIND_OF.get(runner, runner)
        return found


def benchmark(bundle: Bundle, images: ImageSet, *, plan: BenchmarkPlan, split: str = "test", seed: int = 0) -> Report:
    """Run `bundle` through the runners and batch sizes of `plan` on one split of `images` (at most 512, evenly chosen).

    Measurements are named `<metric>.<runner>[batch=<size>]`; `details.comparison` holds the verdicts by batch and runner.
    Raises `UsageError` for an empty split, `InputRefused` for labels that differ or a bundle without what a runner needs.
    """
    pixels = load_pixels(images.split(split), bundle.manifest.preprocessing)
    if not len(pixels):
        raise UsageError(f"{images.name} has no images in its {split} split: choose another split.")
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_IMAGES)).round().astype(int))
    pixels = pixels.take(chosen.tolist())
    reference, imports = _reference(bundle, pixels)
    measurements: list[Measurement] = []
    details: dict[str, Any] = {
        "data": describe_data(images, split, len(pixels)),
        "method": METHOD,
        "rounds": plan.rounds,
        "baseline": next(iter(plan.kinds())),
        "runners": plan.kinds(),
        "batch": list(plan.batch),
        "comparison": {},
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        np.save(Path(folder, "images.npy"), pixels.images_NCHW.numpy(), allow_pickle=False)
        store = str(bundle.path.parents[1])
        task = Task(
            store, bundle.digest, "", 1, plan.threads, str(Path(folder, "images.npy")), str(Path(folder, "logits.npy")), imports
        )
        for batch in plan.batch:
            with _workers(replace(task, batch=batch), plan.kinds()) as workers:
                started = {name: worker.ready() for name, worker in workers.items()}  # all, so that none loads beside another
                facts = {name: started[name] | worker.ask("open") for name, worker in workers.items()}
                for name, worker in workers.items():
                    logits_NK = worker.logits_NK()
                    reference = reference or Reference(logits_NK, f"{name}, batch {batch}")
                    measurements += quality(logits_NK, pixels, bundle.manifest.labels, reference, f"{name}[batch={batch}]")
                found, said = _costs(bundle, workers, facts, plan=plan, seed=seed)
            measurements += found
            details["comparison"][str(batch)] = said.pop("comparison")
            details["runs"] += said.pop("runs")
    details["reference"] = reference.name if reference else ""
    return Report("benchmark", (bundle.digest,), "pass", tuple(measurements), details, environment())


def _reference(bundle: Bundle, pixels: Pixels) -> tuple[Reference | None, tuple[str, ...]]:
    """The float64 logits where the bundle has a module, and the module that must be imported to build it again."""
    if not bundle.has(WEIGHTS):
        return None, ()
    net = restore(bundle)
    runner = EagerRunner(Deployed(net, bundle.manifest.preprocessing), dtype="float64")
    return Reference(predict(runner, pixels), "torch float64"), (type(net).__module__,)


@contextlib.contextmanager
def _workers(task: Task, kinds: Mapping[str, str]) -> Iterator[dict[str, Worker]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Worker(replace(task, kind=kind))) for name, kind in kinds.items()}


def _costs(
    bundle: Bundle, workers: Mapping[str, Worker], facts: Mapping[str, dict[str, Any]], *, plan: BenchmarkPlan, seed: int
) -> tuple[list[Measurement], dict[str, Any]]:
    """Latency, throughput, memory, size and load time of the runners of one batch size, and what to say of them."""
    warmed = {name: worker.ask("warm") for name, worker in workers.items()}
    wall_s, cpu_s = _timed(workers, rounds=plan.rounds, seed=seed)
    samples_ms = {name: kept_ms(wall_s[name], cpu_s[name]) for name in workers}
    comparison = compared(samples_ms, seed=seed)
    found, runs = [], []
    for index, (name, worker) in enumerate(workers.items()):
        batch, times_ms_R = worker.task.batch, samples_ms[name]
        kept = times_ms_R[~np.isnan(times_ms_R)]
        where, n = f"{name}[batch={batch}]", len(kept)
        for metric, share in QUANTILES.items():
            value, interval = quantile(times_ms_R, share, seed=seed + index)
            found.append(Measurement(f"{metric}.{where}", value, "ms", interval, n))
        median = found[-len(QUANTILES)].value
        assert median is not None
        found.append(Measurement(f"throughput.{where}", 1e3 * batch / median, "images/s", n=n))
        if name in comparison:
            value, interval, _ = comparison[name]
            found.append(Measurement(f"latency_ratio.{where}", value, "1", interval, n))
        memory = worker.ask("memory")
        found += [
            Measurement(f"memory.{where}", (memory["peak_bytes"] - memory["before_bytes"]) / 2**20, "MiB"),
            Measurement(f"size.{where}", _size_bytes(bundle, worker.task.kind) / 2**20, "MiB"),
            Measurement(f"load_time.{where}", facts[name]["load_ms"], "ms"),
            Measurement(f"first_call.{where}", facts[name]["first_call_ms"], "ms"),
        ]
        runs.append(
            {"runner": name, "batch": batch, "threads": facts[name]["threads"], **memory, **warmed[name]}
            | {"num_calls": len(times_ms_R), "num_dropped": len(times_ms_R) - n}
            | {"contended": not enough_quiet(wall_s[name], cpu_s[name]), "samples_ms": kept.round(4).tolist()}
        )
    return found, {"comparison": {name: said for name, (_, _, said) in comparison.items()}, "runs": runs}


def _timed(workers: Mapping[str, Worker], *, rounds: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Wall and processor seconds of each runner's calls (R), round by round; further rounds where too few were quiet."""
    random = np.random.default_rng(seed)
    names = list(workers)
    wall_s, cpu_s = {name: np.zeros(0) for name in names}, {name: np.zeros(0) for name in names}
    for _ in range(MOST_BLOCKS):
        for _ in range(rounds):
            for index in random.permutation(len(names)):
                call = workers[names[index]].ask("turn")
                wall_s[names[index]] = np.append(wall_s[names[index]], call["wall_s"])
                cpu_s[names[index]] = np.append(cpu_s[names[index]], call["cpu_s"])
        if all(enough_quiet(wall_s[name], cpu_s[name]) for name in names):
            break
    return wall_s, cpu_s


def _size_bytes(bundle: Bundle, kind: str) -> int:
    """The size of the files a runner needs: the graph with its external data, or the weights."""
    graph = kind not in ("eager", "compile") or not bundle.has(WEIGHTS)
    return sum(
        (bundle.path / name).stat().st_size for name in bundle.manifest.files if name.startswith(ONNX if graph else WEIGHTS)
    )
