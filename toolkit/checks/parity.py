"""Is the exported graph the model? Its errors are held against the model's own rounding, not against a chosen tolerance.

The reference is the untouched module in float64, and what float32 costs on the same images is the floor
(`toolkit.backends.noise`). No fixed `atol` can fit models whose errors vary a thousandfold between images; a multiple of the
floor can. The graph runs in every way it may be served (`parity_matrix`): on each execution provider, with onnxruntime's
optimiser off, basic and all, and in several batch sizes, because a batch baked into the graph is a fault too. Where a device
computes in TF32, its floor is TF32's (`parity_tf32`).

A differing label among the first five is not by itself an error: where the float64 margin between two labels that changed
places lies inside the error that float32 was measured to make in it, the image is a tie. Beyond that the decision changed, and
parity fails.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.backends import graph_opset
from toolkit.backends.noise import Noise, edge_images, measure_noise
from toolkit.bundle import Limit, Measurement, Report, environment, verdict_of
from toolkit.checks.parity_localise import localise
from toolkit.checks.parity_matrix import Outcome, run_matrix
from toolkit.checks.parity_tf32 import tf32_errors, tf32_state
from toolkit.checks.preprocessing_parity import PixelLimits
from toolkit.errors import UsageError

TOP = 5
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class ParityLimits:
    """How far from float64 the runtime may be, in multiples of float32's own error.

    `k_warn` and `k_fail`: the multiples that warn and fail (on 52 clean exports of five architectures and 40 injected faults,
    4 gave one false alarm and 8 none; 8 missed one fault, a single weight off by 1%). `max_float32_share`: where float32
    itself is further than this from float64, as a share of the logits, the floor would excuse anything and parity is
    undecided. `batches`: the batch sizes tried. `num_runs`: float32 runs that measure the floor. `pixels`: how
    far preprocessing inside the graph may be from training's (with `contract=pixels`).
    """

    k_warn: float = 4.0
    k_fail: float = 8.0
    max_float32_share: float = 0.01
    batches: Sequence[int] = (1, 2, 7, 32)
    num_runs: int = 5
    pixels: PixelLimits = field(default_factory=PixelLimits)

    def __post_init__(self) -> None:
        if not 0 < self.k_warn <= self.k_fail:
            raise UsageError(f"parity: k_warn is {self.k_warn} and k_fail {self.k_fail}; give 0 < k_warn <= k_fail.")
        if not 0 < self.max_float32_share < 1:
            raise UsageError(f"parity: max_float32_share is {self.max_float32_share}; give a share between 0 and 1.")
        if len(self.batches) == 0 or min(self.batches) < 1:
            raise UsageError(f"parity: batches is {list(self.batches)}; give sizes of at least 1.")
        if self.num_runs < 2:
            raise UsageError(f"parity: num_runs is {self.num_runs}; the floor needs at least 2 runs.")


def parity(
    reference: nn.Module, onnx_path: Path, images_NCHW: np.ndarray, *, subject: str, limits: ParityLimits | None = None
) -> Report:
    """Compare the graph at `onnx_path` with `reference` (deployed, untouched) on real images, float32 pixels 0..255.

    The report `parity` about the bundle `subject` (digest) fails when an image's error exceeds `k_fail` floors, one of the
    first five labels changes outside the measured error, a value is no number, or a batch size does not run; it is undecided
    where float32 itself is far from float64. Where it fails, `details.fault` names the first wrong module. Raises `UsageError`
    without images, `InputRefused` for a graph that cannot be loaded.
    """
    limits = limits or ParityLimits()
    if len(images_NCHW) == 0:
        raise UsageError("parity needs real images: the data set's split is empty.")
    every_NCHW = with_edges(images_NCHW)
    noise = measure_noise(reference, every_NCHW, num_runs=limits.num_runs)
    num_labels = noise.double_NK.shape[1]
    outcomes, unusable = run_matrix(onnx_path, every_NCHW, batches=limits.batches, num_labels=num_labels)
    judged = [_all_finite(noise, outcomes), _all_run(outcomes)]
    details: dict[str, Any] = {"limits": {**asdict(limits), "batches": list(limits.batches)}, "warning": ""}
    if all(m.passed for m in judged):
        judged += _errors(noise, outcomes, limits, details)
        judged += tf32_errors(reference, every_NCHW, outcomes, k=limits.k_fail, num_runs=limits.num_runs)
    measurements = (*judged, Measurement("opset", graph_opset(onnx_path)))
    if verdict_of(measurements) == "fail" and not any(o.refusal for o in outcomes):
        chosen = _telling(noise, outcomes, num_real=len(images_NCHW))
        found = localise(reference, onnx_path, every_NCHW[chosen], k=limits.k_fail, num_runs=limits.num_runs)
        details["fault"] = {**found.plain(), "images": chosen}
    details |= {
        "num_real_images": len(images_NCHW),
        "num_edge_images": len(every_NCHW) - len(images_NCHW),
        "devices": sorted({o.device.name for o in outcomes}),
        "devices_unusable": unusable,
        "tf32": tf32_state(outcomes),
        "refusals": [f"{o.device.name}, optimiser {o.level}, batch {o.batch}: {o.refusal}" for o in outcomes if o.refusal],
    }
    return Report("parity", (subject,), verdict_of(measurements), measurements, details, environment())


def with_edges(images_NCHW: np.ndarray) -> np.ndarray:
    """The images parity looks at, float32: the real ones, then those at the edges of the range."""
    return np.concatenate([images_NCHW, edge_images(images_NCHW.shape[1:])]).astype(np.float32)


def _telling(noise: Noise, outcomes: list[Outcome], *, num_real: int) -> list[int]:
    """The images to look for a fault with: the one that shows it most, and real ones that give a floor its measure."""
    answers = [o.logits_NK for o in outcomes if o.logits_NK is not None]
    broken_N = np.any([~np.isfinite(logits_NK).all(1) for logits_NK in answers], axis=0)
    worst = int(broken_N.argmax() if broken_N.any() else np.max([noise.ratio_N(a) for a in answers], axis=0).argmax())
    return sorted({worst, *np.linspace(0, num_real - 1, min(3, num_real)).round().astype(int).tolist()})


def _all_run(outcomes: list[Outcome]) -> Measurement:
    refused = sum(bool(o.refusal) for o in outcomes)
    limit = Limit("==", 0, "whoever serves the graph chooses the batch")
    return Measurement.against("batches_refused", float(refused), limit, unit="runs", n=len(outcomes))


def _all_finite(noise: Noise, outcomes: list[Outcome]) -> Measurement:
    finite = noise.finite and all(o.finite for o in outcomes if o.logits_NK is not None)
    return Measurement.against("finite", float(finite), Limit("==", 1, "NaN or infinity is never parity"))


def _errors(noise: Noise, outcomes: list[Outcome], limits: ParityLimits, details: dict[str, Any]) -> list[Measurement]:
    """The errors and decisions of all runs; those in true float32 are judged. What is worth reading beside the numbers goes
    into `details`."""
    answers = {o: o.logits_NK for o in outcomes if o.logits_NK is not None}
    ratios = {o: noise.ratio_N(logits_NK) for o, logits_NK in answers.items()}
    details["runs"] = [
        {
            "device": o.device.name,
            "optimiser": o.level,
            "batch": o.batch,
            "worst_ratio": float(ratio_N.max()),
            "median_ratio": float(np.median(ratio_N)),
        }
        for o, ratio_N in ratios.items()
    ]
    answers = {o: logits_NK for o, logits_NK in answers.items() if not o.device.tf32}
    strict_MN = np.stack([ratios[o] for o in answers])
    worst, n = float(strict_MN.max()), len(noise.double_NK)
    if limits.k_warn < worst <= limits.k_fail:
        details["warning"] = f"the worst error is {worst:.1f} floors: allowed, but more than the usual {limits.k_warn:g}."
    return [
        _judged_ratio(worst, noise, limits),
        *(Measurement(f"error_ratio.{name}", float(np.quantile(strict_MN, q)), "floors", n=n) for name, q in QUANTILES.items()),
        *_spread(noise, answers),
        Measurement("float32_share", noise.float32_share, n=n),
        *_decisions(noise, answers, limits, details),
    ]


def _judged_ratio(worst: float, noise: Noise, limits: ParityLimits) -> Measurement:
    limit = Limit("<=", limits.k_fail, "beyond this many floors a fault is likelier than rounding")
    passed: bool | None = limit.holds(worst)
    if noise.float32_share > limits.max_float32_share:
        passed = None  # float32 itself is so far off that a floor excuses, or accuses, anything
    return Measurement("error_ratio.max", worst, "floors", n=len(noise.double_NK), limit=limit, passed=passed)


def _spread(noise: Noise, answers: Mapping[Outcome, np.ndarray]) -> list[Measurement]:
    """The largest error against float64, and how that of an image's logits is spread over the images, for each runtime."""
    runs: dict[str, list[np.ndarray]] = {}
    for outcome, logits_NK in answers.items():
        runs.setdefault(outcome.runtime, []).append(logits_NK)
    runs["torch_float32"] = [noise.single_RNK[0]]
    errors = {name: np.concatenate([np.abs(a - noise.double_NK).max(1) for a in found]) for name, found in runs.items()}
    return [
        *(Measurement(f"max_error.{name}", float(e.max()), "logits", n=len(noise.double_NK)) for name, e in errors.items()),
        *(
            Measurement(f"error.{name}.{quantile}", float(np.quantile(e, q)), "logits", n=len(e))
            for name, e in errors.items()
            for quantile, q in QUANTILES.items()
        ),
    ]


def _decisions(
    noise: Noise, answers: Mapping[Outcome, np.ndarray], limits: ParityLimits, details: dict[str, Any]
) -> list[Measurement]:
    """Whether every run gives the labels that float64 gives: the first, and the first five in their order."""
    measured = []
    for top, suffix in ((1, ""), (min(TOP, noise.double_NK.shape[1]), ".top5")):
        apart = [noise.disagreements(logits_NK, k=limits.k_fail, top=top) for logits_NK in answers.values()]
        changed = sorted({n for found, _ in apart for n in found})
        ties = sorted({n for _, found in apart for n in found} - set(changed))
        details |= {f"ties{suffix}": ties, f"changed{suffix}": changed}
        n, num_answers = len(noise.double_NK), len(noise.double_NK) * len(answers)
        agreement = 1 - sum(len(found) + len(tied) for found, tied in apart) / num_answers
        limit = Limit("==", 0, "a decision that differs by more than rounding is another model's")
        measured += [
            Measurement("top5_agreement" if suffix else "top1_agreement", agreement, n=num_answers),
            Measurement(f"ties{suffix}", float(len(ties)), "images", n=n),
            Measurement.against(f"decisions_changed{suffix}", float(len(changed)), limit, unit="images", n=n),
        ]
    return measured
