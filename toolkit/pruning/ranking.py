"""Which units are compared with which: the same scores rank differently within a layer and across layers.

A criterion's scores have another scale in every layer. `global` divides them by their group's mean and compares them all;
`local` compares within a group only, so that every group loses the same share; `isomorphic` compares the scores as they are
among groups of the same structure, where scales agree, and takes the same share of each such set (Fang et al., ECCV 2024).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.pruning.groups import Group
from toolkit.pruning.surgery import tensor_owners

Ranking = Literal["global", "local", "isomorphic"]
RANKINGS: tuple[Ranking, ...] = ("global", "local", "isomorphic")


def comparable(net: nn.Module, groups: Sequence[Group], scores: Sequence[Tensor], ranking: Ranking) -> list[Tensor]:
    """The scores of each group's units on one scale, so that one threshold serves all groups; order within a group stays."""
    if ranking == "global":
        return [score / score.mean().clamp(min=1e-30) for score in scores]
    sets: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        sets.setdefault(number if ranking == "local" else structure(net, group), []).append(number)
    result = [torch.empty(0)] * len(groups)
    for members in sets.values():
        together = torch.cat([scores[g] for g in members])
        ranks = torch.empty(len(together), dtype=torch.float64)
        ranks[torch.argsort(together, stable=True)] = torch.arange(1, len(together) + 1, dtype=torch.float64)
        parts = (2 * ranks / (len(together) + 1)).split([len(scores[g]) for g in members])  # a mean of 1, as `global` has
        for g, part in zip(members, parts, strict=True):
            result[g] = part
    return result


def structure(net: nn.Module, group: Group) -> tuple[object, ...]:
    """What makes two groups isomorphic: the kinds of layers their units lie in, and how; widths and names do not count."""
    owners = tensor_owners(net)
    places = []
    for member in group.members:
        tensor, module, key = owners[member.tensor]
        grouped = int(getattr(module, "groups", 1)) > 1
        places.append((type(module).__name__, key, member.dim, tuple(tensor.shape[2:]), grouped, member.consumes))
    return tuple(sorted(places, key=str))
