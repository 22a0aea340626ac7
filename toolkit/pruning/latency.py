"""How long a net takes by its widths: a table of layers timed one by one, read between grid widths.

Exporting every candidate of a search takes minutes; timing a convolution takes milliseconds. Each layer of the net gets a
surface over its widths, timed at a few widths on the grid as the search comes near them, and read linearly in between. What
the whole net takes beside its layers goes with the number of values they make (activations, additions, pooling) or with
nothing (what an operator costs, however narrow), and a layer alone takes longer than within a net, because it has to bring its
data in order. How much of each is learned from the net and some narrower ones, timed whole.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from torch import Tensor, nn

from toolkit.pruning.costs import Blend, Costs, CostsOf, Shape, mac_costs
from toolkit.pruning.groups import Group
from toolkit.pruning.layers import LayerOp, layer_calls
from toolkit.pruning.rules import prunes_whole_groups

ANCHORS = (1 / 32, 1 / 16, 0.125, 0.25, 0.5, 0.75, 1.0)
LEAST_CHANGING = 0.01  # of the whole: where widths change less, a noisy clock has been read

OpTimer = Callable[[LayerOp], float]


@dataclass(frozen=True)
class LatencyModel:
    """Predicts milliseconds. `op_ms` times one layer; `scale`, `rest_ms` a value made and `fixed_ms` make a net of it."""

    op_ms: OpTimer
    grid: int
    scale: float
    rest_ms: float
    fixed_ms: float = 0.0

    @classmethod
    def fit(
        cls,
        net: nn.Module,
        example_NCHW: Tensor,
        *,
        op_ms: OpTimer,
        whole_ms: float,
        grid: int,
        narrower: Sequence[tuple[nn.Module, float]] = (),
    ) -> "LatencyModel":
        """The model nearest to `whole_ms` for `net` as it is, and to the milliseconds beside each `narrower` net.

        `grid` is the grid of channels. Without narrower nets, or where they are not faster, nothing is fixed, and layers
        count as they were timed.
        """
        timed = [(*_sums(one, example_NCHW, op_ms), ms) for one, ms in ((net, whole_ms), *narrower)]
        layers_ms, num_values, _ = timed[0]
        rows = np.array([(layers_ms / ms, num_values / ms, 1 / ms) for layers_ms, num_values, ms in timed])
        size = np.maximum(rows.max(axis=0), 1e-9)
        weights = nnls(rows / size, np.ones(len(rows)))[0] / size if narrower else np.zeros(3)
        if weights[:2] @ (layers_ms, num_values) > LEAST_CHANGING * whole_ms:
            return cls(op_ms, grid, *weights.tolist())
        scale = min(1.0, whole_ms / max(layers_ms, 1e-9))
        return cls(op_ms, grid, scale, max(0.0, whole_ms - layers_ms) / max(num_values, 1))

    def costs(self, net: nn.Module, groups: Sequence[Group], example_NCHW: Tensor) -> Costs:
        """The predicted milliseconds of `net` for any choice of widths."""
        ops: dict[str, list[LayerOp]] = {}
        for call in layer_calls(net, example_NCHW):
            ops.setdefault(call.tensor, []).append(call.op)
        of_tensor = {name: functools.partial(self._layer_ms, tuple(calls)) for name, calls in ops.items()}
        return Costs(net, groups, of_tensor, fixed=self.fixed_ms)

    def steered_costs(self, net: nn.Module, example_NCHW: Tensor) -> CostsOf:
        """What a search should solve on: predicted milliseconds and MACs, half and half, as shares of those of the whole `net`.

        Alone, the time of a narrow layer is mostly what a call costs, and noise: widening it seems free, narrowing it useless.
        """
        ms, macs = (costs(net, [], example_NCHW).total for costs in (self.costs, mac_costs))

        def costs(net: nn.Module, groups: Sequence[Group], example_NCHW: Tensor) -> Blend:
            return Blend((self.costs(net, groups, example_NCHW), ms), (mac_costs(net, groups, example_NCHW), macs))

        return costs

    def _layer_ms(self, ops: Sequence[LayerOp], shape: Shape) -> float:
        total = 0.0
        for op in ops:
            values = op.out_elements * shape[0] / op.out_channels
            total += self.scale * self._surface(op, shape[0], shape[1]) + self.rest_ms * values
        return total

    def _surface(self, op: LayerOp, out_width: int, in_width: int) -> float:
        """The milliseconds of `op` at any widths, bilinear between the four timed ones around."""
        whole = op.groups > 1 and prunes_whole_groups(op.groups)
        step = op.out_channels // op.groups if whole else op.groups
        outs = _between(op.out_channels, math.lcm(self.grid, step), out_width)
        ins = _between(op.in_channels // op.groups, self.grid, in_width)
        corners = [(ow * iw, op.with_widths(o, i)) for o, ow in outs for i, iw in ins]
        return sum(weight * self.op_ms(corner) for weight, corner in corners if weight > 0)


def _sums(net: nn.Module, example_NCHW: Tensor, op_ms: OpTimer) -> tuple[float, int]:
    """The milliseconds of all layers of `net`, each alone, and the number of values they make."""
    ops = [call.op for call in layer_calls(net, example_NCHW)]
    return sum(op_ms(op) for op in ops), sum(op.out_elements for op in ops)


def _between(full: int, grid: int, width: int) -> list[tuple[int, float]]:
    """The timed widths next to `width` with their weights: multiples of `grid` near fixed shares of `full`, and `full`."""
    anchors = sorted({min(full, max(grid, round(full * share / grid) * grid)) for share in ANCHORS[:-1]} | {full})
    if width <= anchors[0]:
        return [(anchors[0], 1.0)]
    above = next(anchor for anchor in anchors if anchor >= width)
    below = anchors[anchors.index(above) - 1]
    share = (width - below) / (above - below)
    return [(below, 1 - share), (above, share)]
