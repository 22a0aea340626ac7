"""What old and new need beside time a call: throughput in batches, memory, load time; each model alone in a process.

Memory is a model's own only where nothing else lives in the process, so each graph gets a process with onnxruntime and no more
(`footprint_process`, asked as the benchmark asks its own), and the two take turns. One process each is one observation: the
ratios have no interval, and a limit on them should leave room for a tenth either way.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.backends.adapted import AdaptedRunner
from toolkit.backends.graph_contract import graph_to_run
from toolkit.backends.graph_files import require_sound_files
from toolkit.bundle import ONNX, Bundle, Measurement
from toolkit.checks.benchmark_timing import kept_ms
from toolkit.checks.benchmark_worker import Task, Worker
from toolkit.checks.regression_cost import MIB
from toolkit.models.restoring import GRAPH_ONLY

ROUNDS, FEW_ROUNDS = 7, 3
SLOW_MS = 1000.0


def footprint_measurements(
    bundles: Mapping[str, Bundle], graphs: Mapping[str, Path], images: Mapping[str, np.ndarray], *, batch: int
) -> list[Measurement]:
    """`throughput` (images/s), `memory` (MiB, the peak) and `load_time` (ms) of `baseline` and `candidate`, with their ratios.

    `graphs` is what `served_graphs` gives; `images` maps each side to float32 images_NCHW, pixels 0..255, repeated to `batch`
    images a call, on one thread. Raises `EnvironmentProblem` where a process ends early, as for want of memory.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-footprint-") as folder, contextlib.ExitStack() as stack:
        tasks = {
            side: _task(bundle, graphs.get(side), images[side], Path(folder, side), batch) for side, bundle in bundles.items()
        }
        workers = {side: stack.enter_context(Worker(task)) for side, task in tasks.items()}
        for worker in workers.values():  # all of them, so that none loads beside another
            worker.ready()
        opened = {side: worker.ask("open") for side, worker in workers.items()}
        held = {side: worker.ask("memory") for side, worker in workers.items()}
        slow = max(facts["first_call_ms"] for facts in opened.values()) > SLOW_MS
        times_ms = _timed(workers, rounds=FEW_ROUNDS if slow else ROUNDS)
    throughput = {side: 1e3 * tasks[side].batch / float(np.nanmedian(times_ms[side])) for side in workers}
    memory = {side: (facts["peak_bytes"] - facts["before_bytes"]) / MIB for side, facts in held.items()}
    load_time = {side: facts["load_ms"] for side, facts in opened.items()}
    return [
        *_sides("throughput", throughput, "images/s"),
        *_sides("memory", memory, "MiB"),
        *_sides("load_time", load_time, "ms"),
    ]


def _task(bundle: Bundle, path: Path | None, images_NCHW: np.ndarray, folder: Path, batch: int) -> Task:
    """What a process is for: the graph that serves the bundle, and its input; without a graph, a TorchScript program."""
    folder.mkdir()
    places: dict[str, Any] = {name: str(folder / f"{name}.npy") for name in ("images", "logits")}
    manifest, batch_NCHW = bundle.manifest, images_NCHW.repeat(batch, axis=0).astype(np.float32)
    if path is None:
        np.save(places["images"], batch_NCHW, allow_pickle=False)
        return Task(str(bundle.path.parents[1]), bundle.digest, "eager", batch, 1, **places)
    graph: Path | bytes = path
    if manifest.architecture.key == GRAPH_ONLY:
        runner = AdaptedRunner(graph, contract=manifest.contract, preprocessing=manifest.preprocessing, threads=1)
        fixed = runner.input.dims[0]
        batch_NCHW = runner.prepared(images_NCHW.repeat(fixed if isinstance(fixed, int) else batch, axis=0))
    elif bundle.has(ONNX):
        graph = graph_to_run(bundle, "fp32")
    require_sound_files(graph)
    if isinstance(graph, bytes):
        Path(folder, ONNX).write_bytes(graph)
        graph = folder / ONNX
    np.save(places["images"], batch_NCHW, allow_pickle=False)
    return Task("", "", "onnx", len(batch_NCHW), 1, graph=str(graph), **places)


def _timed(workers: Mapping[str, Worker], *, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of the calls of each worker that had a core to themselves (the quieter half where few had), NaN else."""
    calls: dict[str, list[tuple[float, float]]] = {side: [] for side in workers}
    for number in range(rounds):
        for side in sorted(workers, reverse=bool(number % 2)):
            answer = workers[side].ask("turn")
            calls[side].append((answer["wall_s"], answer["cpu_s"]))
    return {
        side: kept_ms(np.array([wall for wall, _ in own]), np.array([cpu for _, cpu in own])) for side, own in calls.items()
    }


def _sides(name: str, values: Mapping[str, float], unit: str) -> list[Measurement]:
    ratio = values["candidate"] / values["baseline"] if values["baseline"] > 0 else None
    return [
        *(Measurement(f"{name}.{side}", value, unit) for side, value in values.items()),
        Measurement(f"{name}.ratio", ratio),
    ]
