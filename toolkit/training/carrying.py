"""What optimiser and weight average know of each parameter, carried over a cut of the net to the channels that stay."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.pruning import apply_plan, sliced
from toolkit.training.average import Average


def cut_net(net: nn.Module, plan: Plan, *, channels_last: bool) -> None:
    """Cut `net` by `plan`, its weights laid out in memory as they were."""
    apply_plan(net, plan)
    if channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class Carried:
    """The moments and averages of the parameters of `net` by name, taken before the cut and given to what comes after it."""

    def __init__(self, net: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None) -> None:
        known = optimiser.state
        self.moments = {name: known[parameter] for name, parameter in net.named_parameters() if parameter in known}
        self.means = {} if average is None else dict(zip(average.names, average.mean, strict=True))
        self.num_updates = 0 if average is None else average.num_updates

    def give(self, net: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None, plan: Plan) -> None:
        """Give the new `optimiser` and `average` of the cut `net` what is left of the old ones.

        Statistics of BatchNorm are not carried over: averages of what the whole net saw say nothing about the rest.
        """
        parameters = dict(net.named_parameters())
        for name, state in self.moments.items():
            parameter, dims = parameters[name], plan.kept.get(name, {})
            optimiser.state[parameter] = {key: _moment(value, dims, parameter) for key, value in state.items()}
        if average is None:
            return
        average.num_updates = self.num_updates
        for name, mean in zip(average.names, average.mean, strict=True):
            if name in parameters:
                mean.copy_(sliced(self.means[name], plan.kept.get(name, {})))


def _moment(value: Any, dims: Mapping[str, tuple[int, ...]], parameter: Tensor) -> Any:
    """A value of the optimiser's state; fused steps want moments that lie in memory as their parameter does."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(sliced(value, dims))
