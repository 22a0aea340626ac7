"""Importance criteria, one file each: a frozen dataclass of the file's name that rates the units of every group.

A file added here is a criterion by that alone: `CRITERIA["magnitude"]` is `criteria/magnitude.py`'s `Magnitude`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from toolkit.pruning.groups import Group

Batch = tuple[Tensor, Tensor]


class Criterion(Protocol):
    """Rates units: one vector of `num_units` finite scores from 0 upwards a group, higher is more important.

    `batches` are normalised images_NCHW with targets_N. The net is left exactly as it was.
    """

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[Batch],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Tensor]: ...


def _find() -> dict[str, type]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: getattr(module, name.title().replace("_", "")) for name, module in modules.items()}


CRITERIA: Mapping[str, type] = _find()
