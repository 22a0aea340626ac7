"""Is the exported graph the model? Errors are held against the model's own rounding, not against a hand-picked tolerance.

The reference is the untouched module in float64. What float32 itself costs is its noise floor: the error of PyTorch's own
float32 runs when the input is disturbed by one unit in the last place. Errors of one model vary a thousandfold between
images, so no fixed `atol` can fit; a multiple of the floor can. The runtime is tried with its graph optimiser off and on,
because an export bug and a fusion bug are different failures, and in several batch sizes, because a baked-in batch is one.

A differing top-1 is not by itself an error: where the float64 margin between the two classes lies inside the measured error,
the image is a tie. Outside it, the decision changed, and parity fails whatever the numbers say.

Shapes: N images, C channels, H height, W width (pixels), K labels, R disturbed runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.backends import EagerRunner, OnnxRunner, Runner
from toolkit.bundle import Limit, Measurement, Report, environment, verdict_of
from toolkit.errors import UsageError

EPSILON = 2.0**-24
"""Half a unit in the last place of float32, relative."""


@dataclass(frozen=True)
class ParityLimits:
    """How far from float64 the runtime may be, in multiples of float32's own error.

    `k_warn` and `k_fail`: the multiples that warn and fail (validated on five architectures and forty injected faults).
    `max_float32_share`: float32 itself further than this from float64, relative to the logits, leaves parity undecided.
    `batches`: the batch sizes tried. `num_disturbed`: float32 runs that measure the floor.
    """

    k_warn: float = 4.0
    k_fail: float = 8.0
    max_float32_share: float = 0.01
    batches: Sequence[int] = (1, 2, 7, 32)
    num_disturbed: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.k_warn <= self.k_fail:
            raise UsageError(f"parity: k_warn is {self.k_warn} and k_fail {self.k_fail}; give 0 < k_warn <= k_fail")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"parity: batches is {list(self.batches)}; give sizes of at least 1")
        if self.num_disturbed < 2:
            raise UsageError(f"parity: num_disturbed is {self.num_disturbed}; the floor needs at least 2 runs")


@dataclass(frozen=True, eq=False)
class Reference:
    """What PyTorch says of the images: float64 logits, float32 logits, and float32's noise floor per image."""

    double_NK: np.ndarray
    single_NK: np.ndarray
    floor_N: np.ndarray
    scale_N: np.ndarray


def parity(
    reference: nn.Module, onnx_path: Path, images_NCHW: np.ndarray, *, subject: str, limits: ParityLimits | None = None
) -> Report:
    """Compare the graph at `onnx_path` with `reference` (deployed, untouched) on real images, float32 pixels 0..255.

    The report `parity` about the bundle `subject` (digest) fails when any image's error exceeds `k_fail` floors or any
    decision changes outside the measured error, and is undecided where float32 itself is far from float64. Raises
    `UsageError` without images.
    """
    limits = limits or ParityLimits()
    if len(images_NCHW) == 0:
        raise UsageError("parity needs real images: the data set's split is empty.")
    edges_NCHW = edge_images(images_NCHW[0].shape)
    every_NCHW = np.concatenate([images_NCHW, edges_NCHW]).astype(np.float32)
    known = measure_reference(reference, every_NCHW, limits)
    runs = list(_runs(onnx_path, every_NCHW, known, limits))
    return _report(runs, known, limits, subject=subject, num_real=len(images_NCHW))


def edge_images(shape: Sequence[int]) -> np.ndarray:
    """Inputs at the edge of the range: all black, all white, mid-grey, and a checkerboard of extremes (4, C, H, W)."""
    black = np.zeros(shape, np.float32)
    board = (np.indices(shape).sum(0) % 2 * 255).astype(np.float32)
    return np.stack([black, black + 255, black + 128, board])


def measure_reference(reference: nn.Module, images_NCHW: np.ndarray, limits: ParityLimits) -> Reference:
    """Run PyTorch in float64 and float32, and float32 again on inputs one unit in the last place away."""
    double, single = EagerRunner(reference, dtype="float64", threads=1), EagerRunner(reference, threads=1)
    double_NK = _in_batches(double, images_NCHW, 32)
    single_NK = _in_batches(single, images_NCHW, 32)
    generator = np.random.default_rng(0)
    squares_N = _rms(single_NK - double_NK) ** 2
    for _ in range(limits.num_disturbed - 1):
        toward = np.where(generator.random(images_NCHW.shape) < 0.5, np.float32(-np.inf), np.float32(np.inf))
        disturbed_NCHW = np.clip(np.nextafter(images_NCHW, toward.astype(np.float32)), 0, 255)
        squares_N += _rms(_in_batches(single, disturbed_NCHW, 32) - double_NK) ** 2
    return Reference(double_NK, single_NK, np.sqrt(squares_N / limits.num_disturbed), _rms(double_NK))


@dataclass(frozen=True, eq=False)
class Run:
    """One pass of the runtime over the images: which optimiser level and batch size, and what came out."""

    level: str
    batch: int
    logits_NK: np.ndarray
    ratio_N: np.ndarray
    changed: tuple[int, ...]
    ties: tuple[int, ...]


def _runs(path: Path, images_NCHW: np.ndarray, known: Reference, limits: ParityLimits) -> Iterator[Run]:
    for level in ("off", "all"):
        runner = OnnxRunner(path, threads=1, optimisation=level)
        for batch in limits.batches:
            logits_NK = _in_batches(runner, images_NCHW, batch)
            errors_N = _rms(logits_NK - known.double_NK)
            ratio_N = np.maximum(errors_N - 4 * EPSILON * known.scale_N, 0) / np.maximum(known.floor_N, 1e-300)
            ratio_N = np.where(errors_N <= 4 * EPSILON * known.scale_N, 0.0, ratio_N)
            yield Run(level, batch, logits_NK, ratio_N, *_decisions(logits_NK, known))


def _decisions(logits_NK: np.ndarray, known: Reference) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The images whose top-1 differs from float64's: those that changed for real, and those that were ties."""
    ours_N, theirs_N = logits_NK.argmax(1), known.double_NK.argmax(1)
    differing = np.flatnonzero(ours_N != theirs_N)
    margin_D = known.double_NK[differing, theirs_N[differing]] - known.double_NK[differing, ours_N[differing]]
    allowance_D = 2 * np.abs(known.single_NK - known.double_NK).max(1)[differing] + 8 * EPSILON * known.scale_N[differing]
    real_D = ~(margin_D <= allowance_D)
    return tuple(differing[real_D].tolist()), tuple(differing[~real_D].tolist())


def _report(runs: list[Run], known: Reference, limits: ParityLimits, *, subject: str, num_real: int) -> Report:
    finite = all(np.isfinite(run.logits_NK).all() for run in runs) and bool(np.isfinite(known.double_NK).all())
    ratios = np.concatenate([run.ratio_N for run in runs])
    float32_share = float(np.median(known.floor_N / np.maximum(known.scale_N, 1e-300))) if finite else None
    within = Limit("<=", limits.k_fail, "beyond this many floors a fault is likelier than rounding")
    decided = Limit("==", 0, "a decision that differs by more than rounding is another model's decision")
    num_changed = sum(len(run.changed) for run in runs)
    num_images = len(known.double_NK)
    measurements = [
        Measurement.against("finite", float(finite), Limit("==", 1, "NaN or infinity is never parity")),
        Measurement(
            "decisions_changed", float(num_changed), "images", n=num_images * len(runs), limit=decided, passed=not num_changed
        ),
    ]
    if finite:
        errors = {level: _max_error(runs, known, level) for level in ("off", "all")}
        measurements += [
            _judged_ratio(float(ratios.max()), within, float32_share, limits, n=num_images),
            Measurement("error_ratio.median", float(np.median(ratios)), "floors", n=num_images),
            Measurement("error_ratio.p99", float(np.quantile(ratios, 0.99)), "floors", n=num_images),
            Measurement("max_error.onnxruntime", errors["all"], "logit", n=num_images),
            Measurement("max_error.onnxruntime_unoptimised", errors["off"], "logit", n=num_images),
            Measurement(
                "max_error.torch_float32", float(np.abs(known.single_NK - known.double_NK).max()), "logit", n=num_images
            ),
            Measurement("top1_agreement", _agreement(runs, known), n=num_images * len(runs)),
        ]
    details: dict[str, Any] = {
        "num_real_images": num_real,
        "num_edge_images": num_images - num_real,
        "batches": list(limits.batches),
        "warning": _warning(ratios, limits) if finite else "",
        "ties": sorted({index for run in runs for index in run.ties}),
        "changed": sorted({index for run in runs for index in run.changed}),
        "float32_share": float32_share,
        "runs": [_plain(run) for run in runs] if finite else [],
    }
    return Report("parity", (subject,), verdict_of(measurements), tuple(measurements), details, environment())


def _judged_ratio(worst: float, within: Limit, float32_share: float | None, limits: ParityLimits, *, n: int) -> Measurement:
    """The worst error against its limit; undecided where float32's own error is large, for then the floor excuses anything."""
    passed: bool | None = within.holds(worst)
    if passed and float32_share is not None and float32_share > limits.max_float32_share:
        passed = None
    return Measurement("error_ratio.max", worst, "floors", n=n, limit=within, passed=passed)


def _max_error(runs: list[Run], known: Reference, level: str) -> float:
    return float(max(np.abs(run.logits_NK - known.double_NK).max() for run in runs if run.level == level))


def _agreement(runs: list[Run], known: Reference) -> float:
    return float(np.mean([run.logits_NK.argmax(1) == known.double_NK.argmax(1) for run in runs]))


def _warning(ratios: np.ndarray, limits: ParityLimits) -> str:
    worst = float(ratios.max())
    if limits.k_warn < worst <= limits.k_fail:
        return f"the worst image's error is {worst:.1f} floors: allowed, but more than the usual {limits.k_warn:g}"
    return ""


def _plain(run: Run) -> Mapping[str, Any]:
    return {
        "optimiser": run.level,
        "batch": run.batch,
        "error_ratio": {"median": float(np.median(run.ratio_N)), "max": float(run.ratio_N.max())},
        "changed": list(run.changed),
        "ties": list(run.ties),
    }


def _in_batches(runner: Runner, images_NCHW: np.ndarray, batch: int) -> np.ndarray:
    """logits_NK in float64, computed `batch` images at a time; the last batch is as large as what is left."""
    parts = [runner(images_NCHW[start : start + batch]) for start in range(0, len(images_NCHW), batch)]
    return np.concatenate(parts).astype(np.float64)


def _rms(errors_NK: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(errors_NK), axis=1))
