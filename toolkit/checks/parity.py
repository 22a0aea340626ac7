"""Is the exported graph the model? Its errors are held against the model's own rounding, not against a chosen tolerance.

The reference is the untouched module in float64, and what float32 costs on the same images is the floor (`parity_noise`). No
fixed `atol` can fit models whose errors vary a thousandfold between images; a multiple of the floor can. The graph runs with
onnxruntime's optimiser off and on, because an export bug and a fusion bug are different failures, and in several batch sizes,
because a batch baked into the graph is one.

A differing top label is not by itself an error: where the float64 margin between the two labels lies inside the error that
float32 was measured to make in it, the image is a tie. Beyond that the decision changed, and parity fails.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from toolkit.backends import OnnxRunner, graph_opset
from toolkit.bundle import Limit, Measurement, Report, environment, verdict_of
from toolkit.checks.parity_localise import localise
from toolkit.checks.parity_noise import Noise, edge_images, in_batches, measure_noise
from toolkit.errors import InputRefused, UsageError

LEVELS: tuple[Literal["off", "all"], ...] = ("off", "all")
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class ParityLimits:
    """How far from float64 the runtime may be, in multiples of float32's own error.

    `k_warn` and `k_fail`: the multiples that warn and fail (on 52 clean exports of five architectures and 40 injected faults,
    4 gave one false alarm and 8 none; 8 missed one fault, a single weight off by 1%). `max_float32_share`: where float32
    itself is further than this from float64, as a share of the logits, the floor would excuse anything and parity is
    undecided. `batches`: the batch sizes tried. `num_runs`: float32 runs that measure the floor.
    """

    k_warn: float = 4.0
    k_fail: float = 8.0
    max_float32_share: float = 0.01
    batches: Sequence[int] = (1, 2, 7, 32)
    num_runs: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.k_warn <= self.k_fail:
            raise UsageError(f"parity: k_warn is {self.k_warn} and k_fail {self.k_fail}; give 0 < k_warn <= k_fail.")
        if not 0 < self.max_float32_share < 1:
            raise UsageError(f"parity: max_float32_share is {self.max_float32_share}; give a share between 0 and 1.")
        if len(self.batches) == 0 or min(self.batches) < 1:
            raise UsageError(f"parity: batches is {list(self.batches)}; give sizes of at least 1.")
        if self.num_runs < 2:
            raise UsageError(f"parity: num_runs is {self.num_runs}; the floor needs at least 2 runs.")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The graph's answers at one optimiser level and batch size, or why it would not run there."""

    level: str
    batch: int
    logits_NK: np.ndarray | None
    refusal: str = ""

    @property
    def finite(self) -> bool:
        return self.logits_NK is not None and bool(np.isfinite(self.logits_NK).all())


def parity(
    reference: nn.Module, onnx_path: Path, images_NCHW: np.ndarray, *, subject: str, limits: ParityLimits | None = None
) -> Report:
    """Compare the graph at `onnx_path` with `reference` (deployed, untouched) on real images, float32 pixels 0..255.

    The report `parity` about the bundle `subject` (digest) fails when an image's error exceeds `k_fail` floors, a decision
    changes outside the measured error, a value is no number, or a batch size does not run; it is undecided where float32
    itself is far from float64. Where it fails, `details.fault` names the first wrong module. Raises `UsageError` without
    images, `InputRefused` for a graph that cannot be loaded.
    """
    limits = limits or ParityLimits()
    if len(images_NCHW) == 0:
        raise UsageError("parity needs real images: the data set's split is empty.")
    every_NCHW = np.concatenate([images_NCHW, edge_images(images_NCHW.shape[1:])]).astype(np.float32)
    noise = measure_noise(reference, every_NCHW, num_runs=limits.num_runs)
    outcomes = list(_outcomes(onnx_path, every_NCHW, limits, num_labels=noise.double_NK.shape[1]))
    judged = [_all_finite(noise, outcomes), _all_run(outcomes)]
    details: dict[str, Any] = {"limits": {**asdict(limits), "batches": list(limits.batches)}, "warning": ""}
    if all(m.passed for m in judged):
        judged += _errors(noise, outcomes, limits, details)
    measurements = (*judged, Measurement("opset", graph_opset(onnx_path)))
    if verdict_of(measurements) == "fail" and not any(o.refusal for o in outcomes):
        found = localise(reference, onnx_path, images_NCHW, k=limits.k_fail, num_runs=limits.num_runs)
        details["fault"] = found.plain()
    details |= {
        "num_real_images": len(images_NCHW),
        "num_edge_images": len(every_NCHW) - len(images_NCHW),
        "refusals": [f"optimiser {o.level}, batch {o.batch}: {o.refusal}" for o in outcomes if o.refusal],
    }
    return Report("parity", (subject,), verdict_of(measurements), measurements, details, environment())


def _outcomes(path: Path, images_NCHW: np.ndarray, limits: ParityLimits, *, num_labels: int) -> Iterator[Outcome]:
    for level in LEVELS:
        runner = OnnxRunner(path, threads=1, optimisation=level)
        for batch in limits.batches:
            try:
                logits_NK = in_batches(runner, images_NCHW, batch)
            except (InputRefused, UsageError) as refusal:  # a baked-in batch is refused by the input's declared shape
                yield Outcome(level, batch, None, str(refusal))
                continue
            fits = logits_NK.shape == (len(images_NCHW), num_labels)
            shape = f"{len(images_NCHW)} images gave logits of shape {list(logits_NK.shape)}; the model has {num_labels} labels"
            yield Outcome(level, batch, logits_NK if fits else None, "" if fits else shape)


def _all_run(outcomes: list[Outcome]) -> Measurement:
    refused = sum(bool(o.refusal) for o in outcomes)
    limit = Limit("==", 0, "whoever serves the graph chooses the batch")
    return Measurement.against("batches_refused", float(refused), limit, unit="runs", n=len(outcomes))


def _all_finite(noise: Noise, outcomes: list[Outcome]) -> Measurement:
    finite = noise.finite and all(o.finite for o in outcomes if o.logits_NK is not None)
    return Measurement.against("finite", float(finite), Limit("==", 1, "NaN or infinity is never parity"))


def _errors(noise: Noise, outcomes: list[Outcome], limits: ParityLimits, details: dict[str, Any]) -> list[Measurement]:
    """The errors and decisions of all runs, judged; what is worth reading beside the numbers goes into `details`."""
    answers = {(o.level, o.batch): o.logits_NK for o in outcomes if o.logits_NK is not None}
    ratios = {run: noise.ratio_N(logits_NK) for run, logits_NK in answers.items()}
    apart = {run: noise.disagreements(logits_NK, k=limits.k_fail) for run, logits_NK in answers.items()}
    worst = float(max(ratio_N.max() for ratio_N in ratios.values()))
    changed = sorted({n for found, _ in apart.values() for n in found})
    ties = sorted({n for _, found in apart.values() for n in found} - set(changed))
    details["ties"], details["changed"] = ties, changed
    details["runs"] = [
        {"optimiser": level, "batch": batch, "worst_ratio": float(ratio_N.max()), "median_ratio": float(np.median(ratio_N))}
        for (level, batch), ratio_N in ratios.items()
    ]
    if limits.k_warn < worst <= limits.k_fail:
        details["warning"] = f"the worst error is {worst:.1f} floors: allowed, but more than the usual {limits.k_warn:g}."
    n = len(noise.double_NK)
    return [
        _judged_ratio(worst, noise, limits),
        *(Measurement(f"error_ratio.{name}", _quantile(ratios, q), "floors", n=n) for name, q in QUANTILES.items()),
        *(Measurement(f"max_error.onnxruntime_{level}", _max_error(noise, answers, level), "logits", n=n) for level in LEVELS),
        Measurement("max_error.torch_float32", float(np.abs(noise.single_RNK[0] - noise.double_NK).max()), "logits", n=n),
        *_distributions(noise, answers),
        Measurement("float32_share", noise.float32_share, n=n),
        Measurement("top1_agreement", _agreement(noise, answers), n=n * len(answers)),
        Measurement("ties", float(len(ties)), "images", n=n),
        Measurement.against(
            "decisions_changed",
            float(len(changed)),
            Limit("==", 0, "a decision that differs by more than rounding is another model's"),
            unit="images",
            n=n,
        ),
    ]


def _judged_ratio(worst: float, noise: Noise, limits: ParityLimits) -> Measurement:
    limit = Limit("<=", limits.k_fail, "beyond this many floors a fault is likelier than rounding")
    passed: bool | None = limit.holds(worst)
    if noise.float32_share > limits.max_float32_share:
        passed = None  # float32 itself is so far off that a floor excuses, or accuses, anything
    return Measurement("error_ratio.max", worst, "floors", n=len(noise.double_NK), limit=limit, passed=passed)


def _distributions(noise: Noise, answers: dict[tuple[str, int], np.ndarray]) -> list[Measurement]:
    """How the largest error of an image's logits is spread over the images, for each runtime against float64."""
    runs = {f"onnxruntime_{level}": [a for (at, _), a in answers.items() if at == level] for level in LEVELS}
    runs["torch_float32"] = [noise.single_RNK[0]]
    spread = {
        name: np.concatenate([np.abs(a - noise.double_NK).max(1) for a in found]) for name, found in runs.items() if found
    }
    return [
        Measurement(f"error.{name}.{quantile}", float(np.quantile(errors, q)), "logits", n=len(errors))
        for name, errors in spread.items()
        for quantile, q in QUANTILES.items()
    ]


def _quantile(ratios: dict[tuple[str, int], np.ndarray], quantile: float) -> float:
    return float(np.quantile(np.concatenate(list(ratios.values())), quantile))


def _max_error(noise: Noise, answers: dict[tuple[str, int], np.ndarray], level: str) -> float:
    return float(max(np.abs(answers[run] - noise.double_NK).max() for run in answers if run[0] == level))


def _agreement(noise: Noise, answers: dict[tuple[str, int], np.ndarray]) -> float:
    return float(np.mean([logits_NK.argmax(1) == noise.double_NK.argmax(1) for logits_NK in answers.values()]))
