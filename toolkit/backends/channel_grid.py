"""Which grid of channels this machine is fast on, from the net's own heaviest convolutions.

onnxruntime computes convolutions in blocks of 8 channels (AVX2) or 16 (AVX-512), a GPU in tiles of up to 64. Between two
multiples of 16, a width of 8 more costs half of the way where blocks are of 8, and all of it, or more, where they are of 16;
so for 32 and 64.
"""

import logging
from collections.abc import Collection
from dataclasses import replace

from torch import Tensor, nn

from toolkit.pruning.latency import OpTimer
from toolkit.pruning.layers import LayerOp, layer_calls

FINEST = 8
COARSER = {"cpu": (16,), "cuda": (16, 32, 64)}
NUM_LAYERS = 4
WASTED = 0.75

logger = logging.getLogger(__name__)


def measured_grid(net: nn.Module, example_NCHW: Tensor, *, op_ms: OpTimer, device: str = "cpu") -> tuple[int, float]:
    """The coarsest grid that pays on `device` (8 or 16; on "cuda" also 32 or 64), and what its finer half costs.

    That cost is the share of the way from one multiple to the next that half of it takes (0.5: in proportion). `op_ms` times a
    layer there; `example_NCHW` is one normalised image. A net whose convolutions are all narrower than 32 channels gets 8.
    """
    ops = {call.op for call in layer_calls(net, example_NCHW) if call.op.kind == "conv" and call.op.groups == 1}
    grid, found = FINEST, 0.5
    for coarse in COARSER[device]:
        cost = _cost_of_half(ops, coarse, op_ms)
        if cost is not None and cost > WASTED:
            grid, found = coarse, cost
        elif cost is not None and coarse == 2 * FINEST:
            found = cost
    logger.info(
        "channels go to multiples of %d: half of a step of %d costs %.0f%% of it", grid, max(grid, 2 * FINEST), 100 * found
    )
    return grid, found


def _cost_of_half(ops: Collection[LayerOp], coarse: int, op_ms: OpTimer) -> float | None:
    """The share of the time from one multiple of `coarse` to the next that half as many channels cost; None without layers."""
    wide = [op for op in ops if min(op.in_channels, op.out_channels) >= 2 * coarse]
    wide.sort(key=lambda op: (op.out_elements * op.in_channels, str(op)), reverse=True)
    below = between = above = 0.0
    for op in wide[:NUM_LAYERS]:
        width = min(op.in_channels, op.out_channels) // 2 // coarse * coarse
        below, between, above = (
            total + op_ms(_of_width(op, width + more)) for total, more in ((below, 0), (between, coarse // 2), (above, coarse))
        )
    return (between - below) / (above - below) if above > below else None


def _of_width(op: LayerOp, width: int) -> LayerOp:
    return replace(op, in_channels=width, out_channels=width)
