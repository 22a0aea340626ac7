"""Structured pruning: which channels belong together, which matter least, and cutting them out. Knows no architecture."""

from toolkit.pruning.batchnorm import reestimate_batchnorm
from toolkit.pruning.cost import count_macs, count_parameters
from toolkit.pruning.surgery import apply_plan, compose_plans

__all__ = ["apply_plan", "compose_plans", "count_macs", "count_parameters", "reestimate_batchnorm"]
