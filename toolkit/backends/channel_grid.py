"""Which grid of channels this machine is fast on, from the net's own heaviest convolutions.

onnxruntime computes convolutions in blocks of 8 channels (AVX2) or 16 (AVX-512). Between two multiples of 16, a width of 8
more costs half of the way where blocks are of 8, and all of it, or more, where they are of 16.
"""

import logging
from dataclasses import replace

from torch import Tensor, nn

from toolkit.pruning.latency import OpTimer
from toolkit.pruning.layers import LayerOp, layer_calls

FINE, COARSE = 8, 16
NUM_LAYERS = 4
WASTED = 0.75

logger = logging.getLogger(__name__)


def measured_grid(net: nn.Module, example_NCHW: Tensor, *, op_ms: OpTimer) -> tuple[int, float]:
    """8 or 16, and the share of the way from one multiple of 16 to the next that 8 more channels cost (0.5: in proportion).

    `example_NCHW` is one normalised image. A net whose convolutions are all narrower than 32 channels gets 8.
    """
    ops = {call.op for call in layer_calls(net, example_NCHW) if call.op.kind == "conv" and call.op.groups == 1}
    wide = [op for op in ops if min(op.in_channels, op.out_channels) >= 2 * COARSE]
    wide.sort(key=lambda op: (op.out_elements * op.in_channels, str(op)), reverse=True)
    below = between = above = 0.0
    for op in wide[:NUM_LAYERS]:
        width = min(op.in_channels, op.out_channels) // 2 // COARSE * COARSE
        below, between, above = (
            total + op_ms(_of_width(op, width + more)) for total, more in ((below, 0), (between, FINE), (above, COARSE))
        )
    cost = (between - below) / (above - below) if above > below else 0.5
    grid = COARSE if cost > WASTED else FINE
    logger.info("channels go to multiples of %d: 8 more than a multiple of 16 cost %.0f%% of 16 more", grid, 100 * cost)
    return grid, cost


def _of_width(op: LayerOp, width: int) -> LayerOp:
    return replace(op, in_channels=width, out_channels=width)
