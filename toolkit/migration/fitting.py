"""Building the model a checkpoint was made for, down to its number of classes, which most checkpoints do not state.

The builder's own number is tried first; where that does not fit, the rows of what looks like the head in the checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from toolkit.bundle import Architecture
from toolkit.migration.layering import compact
from toolkit.migration.matching import Matching, match
from toolkit.models import build, find_head


@dataclass(frozen=True, eq=False)
class Fit:
    """The model whose tensors agree best with a checkpoint's, not loaded yet, and how they match."""

    architecture: Architecture
    net: nn.Module
    matching: Matching


def fit(architecture: Architecture, tensors: Mapping[str, Tensor], *, training_only: Sequence[str] = ()) -> Fit:
    """Build `architecture` so that the checkpoint's `tensors` fit, as far as its number of classes can bring that about.

    A `num_classes` in its arguments is kept. Raises what `build` raises; a match that is not complete is returned.
    """
    best = _tried(architecture, tensors, training_only)
    if best.matching.complete or "num_classes" in architecture.kwargs:
        return best
    for num_classes in _possible_classes(best, tensors):
        other = _tried(
            replace(architecture, kwargs={**architecture.kwargs, "num_classes": num_classes}), tensors, training_only
        )
        if other.matching.complete:
            return other
    return best


def _tried(architecture: Architecture, tensors: Mapping[str, Tensor], training_only: Sequence[str]) -> Fit:
    net = build(architecture)
    return Fit(architecture, net, match(tensors, net, training_only=training_only))


def _possible_classes(best: Fit, tensors: Mapping[str, Tensor]) -> list[int]:
    head = f"{find_head(best.net)}.weight"
    rows = [row.source_shape[0] for row in best.matching.rows if row.target == head and row.source_shape]
    matrices = [tensor.shape[0] for tensor in tensors.values() if len(compact(tensor.shape)) == 2]
    return list(dict.fromkeys([*rows, *matrices[-1:]]))
