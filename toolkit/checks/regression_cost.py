"""What the two models cost to run: latency side by side, multiply-accumulates, parameters, file size.

Both run in onnxruntime on one thread, because that is where they are served; a bundle that was never exported is written
to a temporary graph first. Rounds alternate between the models, so that a busy neighbour slows both.

Legend: N images, C channels, H height, W width.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from toolkit.backends import OnnxRunner, measure_latency, write_onnx
from toolkit.backends.clock import Latency
from toolkit.bundle import ONNX, Bundle, Measurement
from toolkit.checks.intervals import CONFIDENCE, NUM_RESAMPLES
from toolkit.models import Deployed, restore
from toolkit.pruning import count_macs, count_parameters

MIB = 2**20


def cost_measurements(
    baseline: Bundle, candidate: Bundle, images: Mapping[str, np.ndarray], *, rounds: int, seed: int = 0
) -> list[Measurement]:
    """Latency at batch 1 (median, p95), MACs, parameters and ONNX size of both, each with the ratio candidate / baseline.

    `images` maps `baseline` and `candidate` to one float32 image each, pixels 0..255, images_NCHW with N = 1. The ratio of
    medians has a bootstrap interval over rounds. `latency_disturbed` counts the rounds
    that were dropped because the process did not get the processor.
    """
    bundles = {"baseline": baseline, "candidate": candidate}
    sizes, measurements = {}, []
    with tempfile.TemporaryDirectory(prefix="toolkit-gate-") as folder:
        paths = {}
        for side, bundle in bundles.items():
            paths[side] = onnx_path(bundle, Path(folder) / side)
            sizes[side] = onnx_bytes(paths[side]) / MIB
        samples = _timed(paths, images, rounds=rounds)
    measurements += _latency(samples, seed)
    restored = {side: restore(bundle) for side, bundle in bundles.items()}
    macs = {
        side: float(count_macs(net, torch.zeros(1, *images[side].shape[1:])))  # what a MAC count needs is the shape alone
        for side, net in restored.items()
    }
    parameters = {side: float(count_parameters(net)) for side, net in restored.items()}
    measurements += _sides("macs", macs, "MACs") + _sides("parameters", parameters, "parameters")
    disturbed = Measurement("latency_disturbed", float(samples.num_dropped), unit="rounds", n=samples.num_rounds)
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
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())


def _timed(paths: Mapping[str, Path], images: Mapping[str, np.ndarray], *, rounds: int) -> Latency:
    """Milliseconds a call of each graph on its own image, taking turns, on one thread."""
    runners = {side: OnnxRunner(path, threads=1) for side, path in paths.items()}

    def bound(side: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda _images_NCHW: runners[side](images[side])  # every runner is handed one batch; the models take two sizes

    return measure_latency({side: bound(side) for side in paths}, images["baseline"], rounds=rounds)


def _latency(samples: Mapping[str, np.ndarray], seed: int) -> list[Measurement]:
    found = []
    for name, quantile in (("latency_median", 0.5), ("latency_p95", 0.95)):
        values = {side: float(np.quantile(times, quantile)) for side, times in samples.items()}
        drawn = {side: _quantiles(times, quantile, seed + i) for i, (side, times) in enumerate(sorted(samples.items()))}
        intervals = {side: _interval(values_B) for side, values_B in drawn.items()}
        rounds = {side: len(times) for side, times in samples.items()}
        found += [
            Measurement(f"{name}.{side}", values[side], unit="ms", interval=intervals[side], n=rounds[side]) for side in values
        ]
        ratio = Measurement(
            f"{name}.ratio",
            values["candidate"] / values["baseline"],
            interval=_interval(drawn["candidate"] / drawn["baseline"]),
            n=min(rounds.values()),
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


def _sides(name: str, values: Mapping[str, float], unit: str) -> list[Measurement]:
    ratio = values["candidate"] / values["baseline"] if values["baseline"] else None
    return [
        *(Measurement(f"{name}.{side}", value, unit=unit) for side, value in values.items()),
        Measurement(f"{name}.ratio", ratio),
    ]
