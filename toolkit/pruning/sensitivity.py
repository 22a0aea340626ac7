"""How much each group matters: prune it alone, a part of it, re-estimate BatchNorm, and look at the loss.

Before re-estimation the loss says little (see `batchnorm`). The answers are kept as lines of a file, so an interrupted
measurement goes on where it stood; a file made for another net, other data or other settings is not read.

N images, C channels, H, W pixels.
"""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.pruning.batchnorm import reestimate_batchnorm
from toolkit.pruning.cost import evaluating, profile_macs
from toolkit.pruning.criteria import Batch, Criterion
from toolkit.pruning.groups import find_groups
from toolkit.pruning.removal import plan_of, prunable
from toolkit.pruning.surgery import apply_plan

PRUNED_SHARE = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sensitivity:
    """What pruning half of one group's units costs: the rise of the loss (nats), and the share of the net's MACs saved."""

    group: str
    channels: int
    loss_rise: float
    macs_saved: float


def measure_sensitivity(
    net: nn.Module,
    example_NCHW: Tensor,
    *,
    criterion: Criterion,
    batches: Sequence[Batch],
    path: Path,
    key: str,
    protect: Sequence[str] = (),
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[Sensitivity]:
    """The sensitivity of every group of `net`, which stays as it is, in the order its layers stand in.

    The units of least importance by `criterion` go; the loss is that of `batches`, which also re-estimate BatchNorm. `key`
    says what net, data and settings these are; answers in `path` under the same key are taken over.
    """
    known = _read(path, key)
    groups = prunable(net, find_groups(net, example_NCHW, protect=protect), example_NCHW)
    missing = [group for group in groups if group.name not in known]
    if missing:
        scores = dict(zip([g.name for g in groups], criterion(net, groups, batches=batches, loss=loss), strict=True))
        whole_macs, whole_loss = profile_macs(net, example_NCHW).total, _loss_refreshed(copy.deepcopy(net), batches, loss)
    for number, group in enumerate(missing):
        twin = copy.deepcopy(net)
        num_kept = max(1, round(group.num_units * (1 - PRUNED_SHARE)))
        keep = torch.zeros(group.num_units, dtype=torch.bool)
        keep[torch.argsort(scores[group.name], descending=True, stable=True)[:num_kept]] = True
        apply_plan(twin, plan_of(net, [group], [keep]))
        saved = 1 - profile_macs(twin, example_NCHW).total / whole_macs
        rise = _loss_refreshed(twin, batches, loss) - whole_loss
        known[group.name] = Sensitivity(group.name, group.num_channels, rise, saved)
        _append(path, key, known[group.name])
        logger.info("sensitivity %d of %d: %s %+.4f nats", number + 1, len(missing), group.name, rise)
    return [known[group.name] for group in groups]


def _loss_refreshed(net: nn.Module, batches: Sequence[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean loss of `net` on `batches` after its BatchNorm is re-estimated on them."""
    reestimate_batchnorm(net, [images_NCHW for images_NCHW, _ in batches])
    with evaluating(net):
        total = sum(float(loss(net(images_NCHW), targets_N)) * len(targets_N) for images_NCHW, targets_N in batches)
    return total / sum(len(targets_N) for _, targets_N in batches)


def _append(path: Path, key: str, found: Sensitivity) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"key": key, **asdict(found)}) + "\n")


def _read(path: Path, key: str) -> dict[str, Sensitivity]:
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                if entry.pop("key") == key:
                    found[entry["group"]] = Sensitivity(**entry)
            except (ValueError, TypeError, KeyError):  # a line cut off by a kill
                continue
    return found
