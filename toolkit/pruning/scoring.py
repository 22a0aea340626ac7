"""From a value for each weight to a value for each unit, the arithmetic criteria share."""

import torch
from torch import Tensor

from toolkit.pruning.groups import Group, Member


def per_index(values: Tensor, dim: int) -> Tensor:
    """The sum of `values` over all dimensions but `dim`."""
    return values.movedim(dim, 0).flatten(start_dim=1).sum(dim=1)


def by_unit(values_of_index: Tensor, member: Member, group: Group) -> Tensor:
    """The sum over each unit of a value for each index of `member`'s dimension, on the CPU."""
    mine = member.units >= 0
    return torch.zeros(group.num_units, dtype=torch.float64).index_add_(0, member.units[mine], values_of_index.cpu()[mine])
