"""What the two models cost to run: latency side by side, multiply-accumulates, parameters, file size.

Both run in onnxruntime on one thread, because that is where they are served; a bundle that was never exported is written
to a temporary graph first, and a TorchScript program runs in torch. The models take turns, and a call that had no core to
itself is left out.

Legend: N images, C channels, H height, W width.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from toolkit.backends import OnnxRunner, Runner, measure_latency, open_runner, write_onnx
from toolkit.backends.devices import PROVIDERS, Device
from toolkit.backends.graph_cost import graph_macs, graph_parameters
from toolkit.backends.graph_files import external_location, external_tensors, read_graph
from toolkit.bundle import ONNX, Bundle, Measurement
from toolkit.checks.intervals import CONFIDENCE, NUM_RESAMPLES
from toolkit.models import Deployed, restore, torchscript
from toolkit.models.restoring import GRAPH_ONLY
from toolkit.pruning import count_macs, count_parameters

MIB = 2**20
LEAST_CPU_SHARE = 0.9
WARMUP_CALLS = 5
MAX_BLOCKS = 4

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def served_graphs(bundles: Mapping[str, Bundle]) -> Iterator[dict[str, Path]]:
    """The ONNX graph of each bundle: its own, or one written for as long as the context lasts; none for TorchScript."""
    with tempfile.TemporaryDirectory(prefix="toolkit-gate-") as folder:
        served = {side: bundle for side, bundle in bundles.items() if bundle.manifest.architecture.key != torchscript.KEY}
        yield {side: onnx_path(bundle, Path(folder) / side) for side, bundle in served.items()}


def cost_measurements(
    bundles: Mapping[str, Bundle],
    graphs: Mapping[str, Path],
    images: Mapping[str, np.ndarray],
    *,
    rounds: int,
    seed: int = 0,
    threads: int = 1,
    device: Device = "cpu",
) -> list[Measurement]:
    """Latency of a call (median, p95) on `threads` threads of the CPU or on the `device`, MACs, parameters and ONNX size
    of both, each with the ratio candidate / baseline.

    `bundles` holds `baseline` and `candidate`, `graphs` what `served_graphs` gives for them; `images` maps both to the
    float32 images of a call, pixels 0..255, images_NCHW. The ratio of medians has a bootstrap interval over calls.
    `latency_disturbed` counts the calls that had no core to themselves and were left out.
    """
    sizes, runners, measurements = {}, {}, []
    for side, bundle in bundles.items():
        if side not in graphs:  # a TorchScript program, served by torch
            sizes[side] = bundle.file(torchscript.FILE).stat().st_size / MIB
            runners[side] = open_runner(bundle, threads=threads, device=device)
            continue
        sizes[side] = onnx_bytes(graphs[side]) / MIB
        if bundle.has(ONNX):
            runners[side] = open_runner(bundle, kind="onnx", threads=threads, device=device)
        else:
            runners[side] = OnnxRunner(graphs[side], providers=PROVIDERS[device], threads=threads)
    watched = _timed(runners, images, rounds=rounds)
    measurements += _latency({side: calls.quiet_ms(rounds // 4) for side, calls in watched.items()}, seed)
    counted = {side: _counted(bundle, images[side].shape) for side, bundle in bundles.items()}
    macs = {side: macs for side, (macs, _) in counted.items()}
    parameters = {side: parameters for side, (_, parameters) in counted.items()}
    measurements += _sides("macs", macs, "MACs") + _sides("parameters", parameters, "parameters")
    num_calls = sum(len(calls.wall_ms) for calls in watched.values())
    num_quiet = sum(calls.num_quiet for calls in watched.values())
    disturbed = Measurement("latency_disturbed", float(num_calls - num_quiet), unit="calls", n=num_calls)
    return [*measurements, *_sides("size", sizes, "MiB"), disturbed]


def onnx_path(bundle: Bundle, folder: Path) -> Path:
    """The bundle's ONNX graph: its own, or one written into `folder` now."""
    if bundle.has(ONNX):
        return bundle.file(ONNX)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = bundle.manifest
    deployed = Deployed(restore(bundle), manifest.preprocessing)
    write_onnx(deployed, folder / ONNX, preprocessing=manifest.preprocessing, labels=manifest.labels)
    return folder / ONNX


def onnx_bytes(path: Path) -> int:
    """Size of a graph with its external data, in bytes."""
    beside = {external_location(tensor) for tensor in external_tensors(read_graph(path))}
    return sum((path.parent / name).stat().st_size for name in {path.name, *beside})


def _counted(bundle: Bundle, shape: tuple[int, ...]) -> tuple[float | None, float | None]:
    """MACs of one image and parameters; None for what a graph without a module hides."""
    if bundle.manifest.architecture.key == GRAPH_ONLY:
        path, taken = bundle.file(ONNX), bundle.manifest.contract.inputs[0]
        sizes = dict(zip("NCHW", shape, strict=True))
        image = tuple(dim if isinstance(dim, int) else sizes[axis] for axis, dim in zip(taken.layout, taken.dims, strict=True))
        macs, parameters = graph_macs(path, image=image), graph_parameters(path)
        for name, count in (("MACs", macs), ("parameters", parameters)):
            if count is None:
                logger.warning("The %s of bundle %s cannot be counted from its graph and are left out.", name, bundle.short)
        return macs, parameters
    net = restore(bundle)
    num_parameters = count_parameters(net) or None  # those of a frozen TorchScript program cannot be seen
    return float(count_macs(net, torch.zeros(1, *shape[1:]))), num_parameters  # the shape alone matters


@dataclass(eq=False)
class _Watched:
    """A runner bound to its image, which notes the time of each call and the share of a core that the call got."""

    runner: Runner
    images_NCHW: np.ndarray
    wall_ms: list[float] = field(default_factory=list)
    cpu_share: list[float] = field(default_factory=list)

    def __call__(self, _images_NCHW: np.ndarray) -> None:  # every runner is handed one batch; the two models take two sizes
        cpu, wall = time.process_time(), time.perf_counter()
        self.runner(self.images_NCHW)
        elapsed = time.perf_counter() - wall
        self.wall_ms.append(1e3 * elapsed)
        self.cpu_share.append((time.process_time() - cpu) / max(elapsed, 1e-9))

    def quiet_ms(self, least: int) -> np.ndarray:
        """The times of the undisturbed calls; of the `least` most nearly undisturbed ones where there are fewer."""
        wall_ms, cpu_share = np.array(self.wall_ms), np.array(self.cpu_share)
        bound = min(LEAST_CPU_SHARE, np.sort(cpu_share)[-least])
        return wall_ms[cpu_share >= bound]

    @property
    def num_quiet(self) -> int:
        return sum(share >= LEAST_CPU_SHARE for share in self.cpu_share)


def _timed(runners: Mapping[str, Runner], images: Mapping[str, np.ndarray], *, rounds: int) -> dict[str, _Watched]:
    """The two graphs called in turns on their own images, one thread each, until `rounds` calls of each were quiet.

    What a busy machine disturbs is a call, not a round: with a 2 ms model next to a 4 ms scheduler slice, a third of the
    calls are three times as slow, and the ratio of plain medians between a model and itself came out anywhere from 0.35 to
    3. Over the calls that had a core to themselves it stayed within 5%. A machine without quiet gets up to 4 times the rounds.
    """
    watched = {side: _Watched(runner, images[side]) for side, runner in runners.items()}
    for call in watched.values():
        for _ in range(WARMUP_CALLS):
            call.runner(call.images_NCHW)
    for _ in range(MAX_BLOCKS):
        measure_latency(watched, images["baseline"], rounds=rounds, warmup=0)
        if min(call.num_quiet for call in watched.values()) >= rounds // 2:
            break
    return watched


def _latency(samples: Mapping[str, np.ndarray], seed: int) -> list[Measurement]:
    found = []
    for name, quantile in (("latency_median", 0.5), ("latency_p95", 0.95)):
        values = {side: float(np.quantile(times, quantile)) for side, times in samples.items()}
        drawn = {side: _quantiles(times, quantile, seed + i) for i, (side, times) in enumerate(sorted(samples.items()))}
        intervals = {side: _interval(values_B) for side, values_B in drawn.items()}
        calls = {side: len(times) for side, times in samples.items()}
        found += [
            Measurement(f"{name}.{side}", values[side], unit="ms", interval=intervals[side], n=calls[side]) for side in values
        ]
        ratio = Measurement(
            f"{name}.ratio",
            values["candidate"] / values["baseline"],
            interval=_interval(drawn["candidate"] / drawn["baseline"]),
            n=min(calls.values()),
        )
        found.append(ratio)
    return found


def _quantiles(times_N: np.ndarray, quantile: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(len(times_N), size=(NUM_RESAMPLES, len(times_N)))
    return np.quantile(times_N[drawn], quantile, axis=1)


def _interval(values_B: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values_B, [tail, 1 - tail])
    return float(low), float(high)


def _sides(name: str, values: Mapping[str, float | None], unit: str) -> list[Measurement]:
    old, new = values["baseline"], values["candidate"]
    ratio = new / old if old and new is not None else None
    return [
        *(Measurement(f"{name}.{side}", value, unit=unit) for side, value in values.items()),
        Measurement(f"{name}.ratio", ratio),
    ]
