"""Choosing what to prune: groups, proof, scores, widths, plan; and doing it in several steps.

N images, C channels, H, W pixels.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.bundle import Plan
from toolkit.errors import InputRefused, UsageError
from toolkit.pruning.batchnorm import reestimate_batchnorm
from toolkit.pruning.cost import profile_macs
from toolkit.pruning.criteria import Batch, Criterion
from toolkit.pruning.groups import Group, find_groups
from toolkit.pruning.removal import plan_of, prunable
from toolkit.pruning.selection import Costs, NothingToPrune, Target, Whole, choose
from toolkit.pruning.surgery import apply_plan, compose_plans

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PruneOptions:
    """How to prune: in how many `steps`, to which grid of channels, what to leave alone, with how many calibration images.

    `num_batches` batches of `batch_size` training images rate the channels, `bn_images` more refresh BatchNorm at the end;
    `seed` draws them.
    """

    steps: int = 1
    round_to: int = 8
    protect: Sequence[str] = ()
    num_batches: int = 16
    batch_size: int = 16
    bn_images: int = 640
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.steps, 1),
            ("round_to", self.round_to, 1),
            ("num_batches", self.num_batches, 1),
            ("batch_size", self.batch_size, 2),
            ("bn_images", self.bn_images, 2),
        ):
            if value < least:
                raise UsageError(f"options.{name} is {value}; it must be at least {least}.")


def plan_pruning(
    net: nn.Module,
    example_NCHW: Tensor,
    *,
    criterion: Criterion,
    target: Target,
    batches: Sequence[Batch] = (),
    round_to: int = 8,
    protect: Sequence[str] = (),
    loss: Loss = F.cross_entropy,
) -> Plan:
    """The plan that prunes `net`, which stays as it is, to `target` by `criterion`.

    `example_NCHW` is one normalised image at the resolution in use; `batches` are normalised images with their targets,
    for criteria that look at data; `round_to` is the grid of channels. The head's outputs and the outputs of the modules
    in `protect` keep their width. Raises `InputRefused` when nothing in `net` can be pruned and `UsageError` when the
    target cannot be met or the grid leaves nothing to remove.
    """
    groups = _prunable_groups(net, example_NCHW, protect)
    scores = _scores(net, groups, criterion=criterion, batches=batches, loss=loss)
    costs = Costs(net, groups, profile_macs(net, example_NCHW))
    return plan_of(net, groups, choose(groups, scores, costs, target=target, round_to=round_to))


def prune_net(
    net: nn.Module,
    example_NCHW: Tensor,
    *,
    criterion: Criterion,
    target: Target,
    batches: Sequence[Batch],
    options: PruneOptions,
    loss: Loss = F.cross_entropy,
) -> Plan:
    """Prune `net` in place in `options.steps` steps towards `target`; returns the plan of all steps together.

    Every step aims at its share of the way from the whole net to the target, so widths rounded up to the grid in one step
    are made up for in the next; a step whose aim is met already is skipped. BatchNorm statistics are refreshed between the
    steps, because a criterion sees nothing in a net whose statistics are wrong; after the last step they are left as they
    are (see `reestimate_batchnorm`). Raises what `plan_pruning` raises, and for a grid that leaves nothing to remove only
    when that is so in every step.
    """
    groups = _prunable_groups(net, example_NCHW, options.protect)
    whole = Whole.of(groups, profile_macs(net, example_NCHW).total)
    plan = Plan()
    for step in range(1, options.steps + 1):
        costs = Costs(net, groups, profile_macs(net, example_NCHW))
        aim = _aim(target, step / options.steps)
        try:
            if aim.macs is not None and costs.total <= aim.macs * whole.macs:
                raise NothingToPrune(f"step {step} is met already")
            scores = _scores(net, groups, criterion=criterion, batches=batches, loss=loss)
            made = plan_of(net, groups, choose(groups, scores, costs, target=aim, round_to=options.round_to, whole=whole))
        except NothingToPrune:
            if step == options.steps and not plan:
                raise
            logger.info("pruning step %d of %d: skipped, its aim is met as far as the grid allows", step, options.steps)
            continue
        apply_plan(net, made)
        plan = compose_plans(plan, made)
        if step < options.steps:
            reestimate_batchnorm(net, [images_NCHW for images_NCHW, _ in batches])
            groups = prunable(net, find_groups(net, example_NCHW, protect=options.protect), example_NCHW)
        share = profile_macs(net, example_NCHW).total / whole.macs
        logger.info("pruning step %d of %d: %.1f%% of the MACs", step, options.steps, 100 * share)
    return plan


def _aim(target: Target, share: float) -> Target:
    """The target of a step: `share` (0..1) of the way to `target`, exactly that at 1."""
    if share == 1:
        return target
    if target.macs is not None:
        return Target(macs=1 - (1 - target.macs) * share)
    assert target.ratio is not None
    return Target(ratio=target.ratio * share)


def _prunable_groups(net: nn.Module, example_NCHW: Tensor, protect: Sequence[str]) -> list[Group]:
    groups = prunable(net, find_groups(net, example_NCHW, protect=protect), example_NCHW)
    if not groups:
        raise InputRefused(
            f"Nothing in this {type(net).__name__} can be pruned: every width is either protected, part of the output, or tied "
            "to something that cannot be cut (see the log for the layers)."
        )
    return groups


def _scores(
    net: nn.Module, groups: Sequence[Group], *, criterion: Criterion, batches: Sequence[Batch], loss: Loss
) -> list[Tensor]:
    if not groups:  # the steps before left single units alone
        return []
    with torch.enable_grad():
        scores = list(criterion(net, groups, batches=batches, loss=loss))
    for group, score in zip(groups, scores, strict=True):
        _require_sound(group, score)
    return scores


def _require_sound(group: Group, score: Tensor) -> None:
    if score.shape != (group.num_units,) or not bool(torch.isfinite(score).all()) or bool((score < 0).any()):
        raise UsageError(
            f"The criterion's scores for '{group.name}' are not {group.num_units} finite numbers from 0 upwards: the weights "
            "or the calibration images hold NaN, or the criterion is wrong."
        )
