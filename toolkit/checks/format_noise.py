"""What a shorter number format costs a model on these images: the noise that a graph computed in it is held against.

No hardware is needed, and none is trusted: processors without float16 compute such a graph in float32 and round here and
there, cards accumulate as they like. The module runs in float32 and is rounded to the significant bits of the format, with
float32's exponent: what the format cannot hold at all is a matter of ranges, not of noise. In fp16 and bf16 that is the result
of every operator and every weight; in tf32, which lives inside matrix products alone, both operands of every product. The
first run rounds to nearest, the others up or down at random (stochastic rounding), so that the runs differ.

Legend: N images, C channels, H height, W width, K labels, R runs.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from toolkit.backends import EagerRunner
from toolkit.backends.noise import REFERENCE_BATCH, Noise, in_batches

SIGNIFICANT_BITS = {"fp16": 11, "bf16": 8, "tf32": 11}
PRODUCTS = (
    *("conv", "_conv", "mkldnn_conv", "linear", "einsum", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm"),
    *("scaled_dot_product", "_scaled_dot_product", "_native_multi_head_attention"),
)  # in inference mode composite operators come as they are, elsewhere as their parts
FLOAT32_BITS = 24


def rounded(values: Tensor, *, bits: int, random: torch.Generator | None = None) -> Tensor:
    """Float32 `values` rounded to `bits` significant bits: to the nearest (ties to even), or up or down at random."""
    dropped = FLOAT32_BITS - bits
    whole = values.contiguous().view(torch.int32)
    if random is None:
        add = (2 ** (dropped - 1) - 1) + ((whole >> dropped) & 1)
    else:
        add = torch.randint(0, 2**dropped, whole.shape, dtype=torch.int32, generator=random)
    near = ((whole + add) & -(2**dropped)).view(torch.float32)
    return torch.where(values.isfinite(), near, values)


class RoundedOperators(TorchDispatchMode):
    """Within this mode the float32 results of every operator are rounded, those written in place too."""

    def __init__(self, *, bits: int, random: torch.Generator | None) -> None:
        super().__init__()
        self.bits, self.random = bits, random

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        if func._schema.is_mutable:
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                result.copy_(rounded(result, bits=self.bits, random=self.random))
            return result
        return tree_map_only(Tensor, self._round, result)

    def _round(self, value: Tensor) -> Tensor:
        return rounded(value, bits=self.bits, random=self.random) if value.dtype == torch.float32 else value


class RoundedProducts(RoundedOperators):
    """Within this mode the float32 operands of every matrix product and convolution are rounded, and nothing else."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::").startswith(PRODUCTS):
            args = tree_map_only(Tensor, self._round, args)
        return func(*args, **(kwargs or {}))


def measure_format_noise(
    reference: nn.Module, images_NCHW: np.ndarray, *, precision: str = "fp16", num_runs: int, seed: int = 0
) -> Noise:
    """The float64 logits of `reference` (deployed: pixels to logits) and those of `num_runs` runs rounded to `precision`
    (fp16, bf16 or tf32)."""
    bits = SIGNIFICANT_BITS[precision]
    double_NK = in_batches(
        EagerRunner(reference, dtype="float64", threads=1), images_NCHW, min(REFERENCE_BATCH, len(images_NCHW))
    )
    short = copy.deepcopy(reference).cpu().float().eval()
    mode = RoundedProducts if precision == "tf32" else RoundedOperators
    if mode is RoundedOperators:
        _round_weights(short, bits=bits)
    runner, random = EagerRunner(short, threads=1), torch.Generator().manual_seed(seed)
    runs = []
    for run in range(num_runs):
        with mode(bits=bits, random=random if run else None):
            runs.append(in_batches(runner, images_NCHW, min(REFERENCE_BATCH, len(images_NCHW))))
    return Noise(double_NK, np.stack(runs))


@torch.no_grad()
def _round_weights(module: nn.Module, *, bits: int) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.copy_(rounded(tensor, bits=bits))
