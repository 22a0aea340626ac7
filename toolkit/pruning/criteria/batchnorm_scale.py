"""BatchNorm scale: a channel that its BatchNorm scales down does little (network slimming, Liu et al., ICCV 2017)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.pruning.criteria.magnitude import Magnitude
from toolkit.pruning.groups import Group
from toolkit.pruning.scoring import by_unit
from toolkit.pruning.surgery import tensor_owners


@dataclass(frozen=True)
class BatchnormScale:
    """The mean absolute BatchNorm weight of a unit; groups without BatchNorm are rated by magnitude."""

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[tuple[Tensor, Tensor]] = (),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Scores of each group's units; `batches` and `loss` are not looked at."""
        owners = tensor_owners(net)
        scores = Magnitude()(net, groups)
        for number, group in enumerate(groups):
            scales = []
            for member in group.members:
                tensor, module, key = owners[member.tensor]
                if isinstance(module, _BatchNorm) and key == "weight":
                    scales.append(by_unit(tensor.detach().double().abs(), member, group))
            if scales:
                scores[number] = torch.stack(scales).mean(dim=0)
        return scores
