"""A graph in TF32 is held against TF32: like with like.

Cards from Ampere on may compute float32 products with operands of 11 significant bits. The floor of float32 would call that a
fault, so the runs on a device where TF32 is on have a floor of their own, simulated on the untouched module (`format_noise`),
and the same multiple of it. Where TF32 moves the logits so far that its floor would excuse anything, the error is told and not
judged.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.backends.noise import Noise
from toolkit.bundle import Limit, Measurement
from toolkit.checks.format_noise import measure_format_noise
from toolkit.checks.parity_matrix import CPU, Outcome

MAX_SHARE = 0.05


def tf32_errors(
    reference: nn.Module, images_NCHW: np.ndarray, outcomes: Sequence[Outcome], *, k: float, num_runs: int
) -> list[Measurement]:
    """The errors of the outcomes in TF32 in floors of TF32, judged by `k` of them, and the decisions changed beyond that."""
    answers = [(o, o.logits_NK) for o in outcomes if o.device.tf32 and o.logits_NK is not None]
    if not answers:
        return []
    noise = measure_format_noise(reference, images_NCHW, precision="tf32", num_runs=num_runs)
    named = sorted({o.device.name for o, _ in answers})
    per_device = {name: [logits_NK for o, logits_NK in answers if o.device.name == name] for name in named}
    lines = [line for name, found in per_device.items() for line in _device_lines(noise, name, found, k=k)]
    return [*lines, Measurement("tf32_share", noise.float32_share, n=len(images_NCHW))]


def _device_lines(noise: Noise, name: str, answers: Sequence[np.ndarray], *, k: float) -> list[Measurement]:
    worst = max(float(noise.ratio_N(logits_NK).max()) for logits_NK in answers)
    changed = {n for logits_NK in answers for n in noise.disagreements(logits_NK, k=k)[0]}
    n, measures = len(noise.double_NK), noise.float32_share <= MAX_SHARE
    if not measures:
        return [
            Measurement(f"error_ratio.{name}", worst, "TF32 floors", n=n),
            Measurement(f"decisions_changed.{name}", float(len(changed)), "images", n=n),
        ]
    return [
        Measurement.against(
            f"error_ratio.{name}",
            worst,
            Limit("<=", k, "beyond this many floors of TF32 a fault is likelier than rounding"),
            unit="TF32 floors",
            n=n,
        ),
        Measurement.against(
            f"decisions_changed.{name}",
            float(len(changed)),
            Limit("==", 0, "a decision that differs by more than rounding is another model's"),
            unit="images",
            n=n,
        ),
    ]


def tf32_state(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Whether TF32 is on, in torch and on each device of the outcomes, in numbers and as a sentence."""
    used = {outcome.device.name: outcome.device.tf32 for outcome in outcomes if outcome.device.name != CPU}
    torch_state = {
        "torch_matmul": torch.backends.cuda.matmul.allow_tf32,
        "torch_cudnn": torch.backends.cudnn.allow_tf32,
    }
    if not used:
        return {**torch_state, "onnxruntime": {}, "sentence": "TF32 plays no part: everything ran on the CPU."}
    with_tf32 = " and ".join(name for name, on in used.items() if on)
    sentence = "The floor is torch's on the CPU, without TF32; onnxruntime is held against it with TF32 off."
    if with_tf32:
        sentence += f" With TF32 on ({with_tf32}) it is held against a floor of TF32."
    return {**torch_state, "onnxruntime": used, "sentence": sentence}
