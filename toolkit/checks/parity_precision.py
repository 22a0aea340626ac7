"""Is a graph in a lower precision still the model? Each precision is asked what it can be asked.

float16 computes the same function with more rounding, so it is held to what float32 is held to: its error against float64, in
multiples of what rounding every operator to 11 bits costs on the same images (`format_noise`). int8 computes another function,
close enough or not, so it is judged by what it decides: the share of images whose label stays, and the accuracy against the
float32 graph on the same labelled images, where a loss beyond the margin must be excluded by the interval and not merely not
be seen.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.backends.noise import Noise
from toolkit.bundle import Limit, Measurement
from toolkit.checks.intervals import accuracy_difference_interval, share_interval
from toolkit.checks.metrics import Predictions
from toolkit.checks.parity_matrix import Outcome
from toolkit.checks.regression_limits import GateLimits, Rule, judge
from toolkit.errors import UsageError

LARGEST_HALF = 65504.0
MIB = 2**20


@dataclass(frozen=True)
class PrecisionLimits:
    """What a graph in a lower precision may cost.

    `margin`: the loss of accuracy against the float32 graph (share, 0..1) that the 95% interval must exclude for int8, and the
    measured loss keep within for fp16. `min_agreement`: the least share of test images whose label stays. Each has its reason.
    `max_half_share`: where rounding to fp16 moves the logits by more than this share, its floor would excuse anything and
    parity in fp16 is undecided.
    """

    margin: float = 0.02
    margin_reason: str = "two points buy a quarter of the size; who cannot give them serves float32"
    min_agreement: float = 0.95
    agreement_reason: str = "callers that compare single answers take more than one in twenty changed for another model"
    max_half_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(f"precision limits: margin is {self.margin}; give a loss of accuracy between 0 and 1, e.g. 0.02.")
        if not 0 <= self.min_agreement <= 1:
            raise UsageError(f"precision limits: min_agreement is {self.min_agreement}; give a share between 0 and 1.")
        if not 0 < self.max_half_share < 1:
            raise UsageError(f"precision limits: max_half_share is {self.max_half_share}; give a share between 0 and 1.")
        if not self.margin_reason.strip() or not self.agreement_reason.strip():
            raise UsageError("precision limits: say why the margin and the agreement were chosen (margin_reason=...).")


def soundness(outcomes: Sequence[Outcome]) -> list[Measurement]:
    """Whether the graph runs on every device, optimiser level and batch size, and answers numbers."""
    refused = Limit("==", 0, "whoever serves the graph chooses the batch")
    answered = [outcome for outcome in outcomes if outcome.logits_NK is not None]
    finite = bool(answered) and all(outcome.finite for outcome in answered)
    return [
        Measurement.against("finite", float(finite), Limit("==", 1, "NaN or infinity is never parity")),
        Measurement.against("batches_refused", float(len(outcomes) - len(answered)), refused, unit="runs"),
    ]


def answers(outcomes: Sequence[Outcome]) -> list[np.ndarray]:
    """The logits_NK of the runs that answered."""
    return [outcome.logits_NK for outcome in outcomes if outcome.logits_NK is not None]


def half_errors(noise: Noise, outcomes: Sequence[Outcome], *, k: float, limits: PrecisionLimits) -> list[Measurement]:
    """The errors of a float16 graph in floors of `noise`, judged by `k` of them, and the decisions it changed beyond them."""
    ratios_MN = np.stack([noise.ratio_N(logits_NK) for logits_NK in answers(outcomes)])
    apart = [noise.disagreements(logits_NK, k=k) for logits_NK in answers(outcomes)]
    changed = {n for found, _ in apart for n in found}
    ties = {n for _, found in apart for n in found} - changed
    worst, n = float(ratios_MN.max()), len(noise.double_NK)
    limit = Limit("<=", k, "beyond this many floors a fault is likelier than rounding")
    passed = limit.holds(worst) if noise.float32_share <= limits.max_half_share else None
    other = Limit("==", 0, "a decision that differs by more than rounding is another model's")
    return [
        Measurement("error_ratio.max", worst, "floors", n=n, limit=limit, passed=passed),
        Measurement("error_ratio.median", float(np.median(ratios_MN)), "floors", n=n),
        Measurement("half_share", noise.float32_share, n=n),
        Measurement("ties", float(len(ties)), "images", n=n),
        Measurement.against("decisions_changed", float(len(changed)), other, unit="images", n=n),
    ]


def half_reach(largest: float) -> Measurement:
    """The largest magnitude that a value kept in float16 takes on the test images."""
    limit = Limit("<=", LARGEST_HALF, "float16 has no larger number; processors without float16 would not show it")
    return Measurement.against("half_largest", largest, limit)


def runs_agreement(outcomes: Sequence[Outcome], *, limits: PrecisionLimits) -> Measurement:
    """The share of images to which all devices, optimiser levels and batch sizes give one label."""
    labels_MN = np.stack([logits_NK.argmax(1) for logits_NK in answers(outcomes)])
    share = float((labels_MN == labels_MN[0]).all(0).mean())
    limit = Limit(">=", limits.min_agreement, "integer kernels that differ from the graph's own arithmetic overflow")
    return Measurement.against("runs_agreement", share, limit, n=labels_MN.shape[1])


def accuracy_change(old: Predictions, new: Predictions) -> list[Measurement]:
    """Accuracy of the float32 graph (baseline) and of the other, the paired difference, and the share of labels that stay."""
    n = len(old)
    lost, won = int((old.correct_N & ~new.correct_N).sum()), int((~old.correct_N & new.correct_N).sum())
    interval, _ = accuracy_difference_interval(lost, won, n)
    same = int((old.classes_N == new.classes_N).sum())
    return [
        *(
            Measurement(f"accuracy.{side}", float(p.correct_N.mean()), n=n, interval=share_interval(int(p.correct_N.sum()), n))
            for side, p in (("baseline", old), ("candidate", new))
        ),
        Measurement("accuracy.difference", (won - lost) / n, n=n, interval=interval),
        Measurement("top1_agreement", same / n, n=n, interval=share_interval(same, n)),
    ]


def judged_accuracy(
    found: list[Measurement], *, limits: PrecisionLimits, by: Literal["value", "interval"]
) -> tuple[list[Measurement], dict[str, Any]]:
    """The measurements of `accuracy_change` held against the limits, and the explanations by name."""
    rules = {
        "margin": Rule("accuracy.difference", ">=", -limits.margin, limits.margin_reason, judged_by=by),
        "agreement": Rule("top1_agreement", ">=", limits.min_agreement, limits.agreement_reason),
    }
    return judge(found, GateLimits(rules))


def sizes(old: Path, new: Path) -> list[Measurement]:
    """The files' sizes, with their external data, and the ratio."""
    bytes_ = [sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) for path in (old, new)]
    return [
        Measurement("size.baseline", bytes_[0] / MIB, unit="MiB"),
        Measurement("size.candidate", bytes_[1] / MIB, unit="MiB"),
        Measurement("size.ratio", bytes_[1] / bytes_[0]),
    ]
