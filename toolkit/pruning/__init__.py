"""Structured pruning: which channels belong together, which matter least, and cutting them out. Knows no architecture."""

from toolkit.pruning.batchnorm import reestimate_batchnorm
from toolkit.pruning.cost import count_macs, count_parameters
from toolkit.pruning.criteria import CRITERIA, Criterion
from toolkit.pruning.groups import Group, Member, find_groups
from toolkit.pruning.planning import COSTS, PruneOptions, Steps, plan_pruning, prune_net
from toolkit.pruning.removal import zero_removed
from toolkit.pruning.selection import NothingToPrune
from toolkit.pruning.surgery import apply_plan, compose_plans, sliced
from toolkit.pruning.target import Budget, Target

__all__ = [
    "COSTS",
    "CRITERIA",
    "Budget",
    "Criterion",
    "Group",
    "Member",
    "NothingToPrune",
    "PruneOptions",
    "Steps",
    "Target",
    "apply_plan",
    "compose_plans",
    "count_macs",
    "count_parameters",
    "find_groups",
    "plan_pruning",
    "prune_net",
    "reestimate_batchnorm",
    "sliced",
    "zero_removed",
]
