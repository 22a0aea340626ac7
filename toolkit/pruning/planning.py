"""Choosing what to prune: groups, proof, scores, widths, plan; and doing it in several steps.

A budget is of MACs, parameters or milliseconds; what those cost by width comes in as a function (`costs`), so nothing here
knows how milliseconds are measured.

N images, C channels, H, W pixels.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.bundle import Plan
from toolkit.errors import InputRefused, UsageError, unknown_name
from toolkit.pruning.batchnorm import reestimate_batchnorm
from toolkit.pruning.cost import profile_macs
from toolkit.pruning.costs import CostsOf, mac_costs, parameter_costs
from toolkit.pruning.criteria import Batch, Criterion
from toolkit.pruning.groups import Group, find_groups
from toolkit.pruning.ranking import RANKINGS, Ranking, comparable
from toolkit.pruning.removal import plan_of, prunable
from toolkit.pruning.selection import NothingToPrune, Whole, choose
from toolkit.pruning.surgery import apply_plan, compose_plans
from toolkit.pruning.target import Budget

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
COSTS: Mapping[str, CostsOf] = {"macs": mac_costs, "ratio": mac_costs, "params": parameter_costs}


@dataclass(frozen=True)
class PruneOptions:
    """How to prune: in how many `steps`, to which grid of channels, what to leave alone, with how many calibration images.

    `round_to` is the grid; `auto` measures which grid this machine is fast on. `ranking` says which units compete with which
    (see `ranking`). `sensitivity` measures what pruning each group alone costs, and `curve` names shares of the MACs (0..1)
    at which accuracy and latency are measured too: both for people to look at. `num_batches` batches of `batch_size`
    training images rate the channels, `bn_images` more refresh BatchNorm at the end; `seed` draws them.
    """

    steps: int = 1
    round_to: int | Literal["auto"] = 8
    protect: Sequence[str] = ()
    ranking: Ranking = "global"
    sensitivity: bool = False
    curve: Sequence[float] = ()
    num_batches: int = 16
    batch_size: int = 16
    bn_images: int = 640
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.steps, 1),
            ("round_to", 1 if self.round_to == "auto" else self.round_to, 1),
            ("num_batches", self.num_batches, 1),
            ("batch_size", self.batch_size, 2),
            ("bn_images", self.bn_images, 2),
        ):
            if value < least:
                raise UsageError(f"options.{name} is {value}; it must be at least {least}.")
        if self.ranking not in RANKINGS:
            raise unknown_name("ranking (options.ranking)", self.ranking, RANKINGS)
        if not all(0 < share < 1 for share in self.curve):
            raise UsageError(f"options.curve is {list(self.curve)}; give shares of the MACs between 0 and 1, like [0.75,0.5].")

    @property
    def grid(self) -> int:
        """The grid as a number. Raises `UsageError` for one that still has to be measured."""
        if self.round_to == "auto":
            raise UsageError("options.round_to is 'auto': measure the grid first, or give 8 or 16.")
        return self.round_to


def plan_pruning(
    net: nn.Module,
    example_NCHW: Tensor,
    *,
    criterion: Criterion,
    budget: Budget,
    batches: Sequence[Batch] = (),
    options: PruneOptions = PruneOptions(),
    costs: CostsOf | None = None,
    loss: Loss = F.cross_entropy,
) -> Plan:
    """The plan that prunes `net`, which stays as it is, to `budget` by `criterion`, in one step.

    `example_NCHW` is one normalised image at the resolution in use; `batches` are normalised images with their targets,
    for criteria that look at data; `costs` makes the costs of a budget that is neither of MACs nor of parameters. The head's
    outputs and the outputs of the modules in `options.protect` keep their width. Raises `InputRefused` when nothing in `net`
    can be pruned and `UsageError` when the budget cannot be met or the grid leaves nothing to remove.
    """
    twin = copy.deepcopy(net)
    options = replace(options, steps=1)
    return prune_net(
        twin, example_NCHW, criterion=criterion, budget=budget, batches=batches, options=options, costs=costs, loss=loss
    )


def prune_net(
    net: nn.Module,
    example_NCHW: Tensor,
    *,
    criterion: Criterion,
    budget: Budget,
    batches: Sequence[Batch],
    options: PruneOptions,
    costs: CostsOf | None = None,
    loss: Loss = F.cross_entropy,
) -> Plan:
    """Prune `net` in place in `options.steps` steps towards `budget`; returns the plan of all steps together.

    BatchNorm statistics are refreshed between the steps, because a criterion sees nothing in a net whose statistics are
    wrong; after the last step they are left as they are (see `reestimate_batchnorm`). Raises what `plan_pruning` raises, and
    for a grid that leaves nothing to remove only when that is so in every step.
    """
    steps = Steps(net, example_NCHW, criterion=criterion, budget=budget, options=options, costs=costs, loss=loss)
    macs, plan = profile_macs(net, example_NCHW).total, Plan()
    for step in range(1, options.steps + 1):
        try:
            made = steps.plan(net, step, batches)
        except NothingToPrune:
            if step == options.steps and not plan:
                raise
            logger.info("pruning step %d of %d: skipped, its aim is met as far as the grid allows", step, options.steps)
            continue
        apply_plan(net, made)
        plan = compose_plans(plan, made)
        if step < options.steps:
            reestimate_batchnorm(net, [images_NCHW for images_NCHW, _ in batches])
        share = profile_macs(net, example_NCHW).total / macs
        logger.info("pruning step %d of %d: %.1f%% of the MACs", step, options.steps, 100 * share)
    return plan


class Steps:
    """Plans `options.steps` steps of pruning from the net it is made with, whoever carries them out, and whenever.

    Every step aims at its share of the way from that whole net to the budget, so widths rounded up to the grid in one step
    are made up for in the next. Raises `InputRefused` when nothing in the net can be pruned.
    """

    def __init__(
        self,
        net: nn.Module,
        example_NCHW: Tensor,
        *,
        criterion: Criterion,
        budget: Budget,
        options: PruneOptions,
        costs: CostsOf | None = None,
        loss: Loss = F.cross_entropy,
    ) -> None:
        self.criterion, self.budget, self.options, self.loss = criterion, budget, options, loss
        self._costs, self._example_NCHW = costs or COSTS[budget.quantity], example_NCHW
        self._groups, self._widths = _prunable_groups(net, example_NCHW, options.protect), _widths(net)
        self._whole = Whole.of(self._groups, self._costs(net, self._groups, example_NCHW).total)

    def plan(self, net: nn.Module, step: int, batches: Sequence[Batch]) -> Plan:
        """What step `step` (from 1) removes from `net`, the whole net as the steps before left it; `net` stays as it is.

        Raises `NothingToPrune` when the step's aim is met already, or the grid leaves nothing to remove.
        """
        if _widths(net) != self._widths:
            groups = find_groups(net, self._example_NCHW, protect=self.options.protect)
            self._groups, self._widths = prunable(net, groups, self._example_NCHW), _widths(net)
        groups, options, aim = self._groups, self.options, self.budget.step(step / self.options.steps)
        now = self._costs(net, groups, self._example_NCHW)
        if aim.quantity != "ratio" and now.total <= aim.share * self._whole.cost:
            raise NothingToPrune(f"step {step} is met already")
        scores = _scores(net, groups, criterion=self.criterion, batches=batches, loss=self.loss)
        ranked = comparable(net, groups, scores, options.ranking)
        return plan_of(net, groups, choose(groups, ranked, now, budget=aim, round_to=options.grid, whole=self._whole))


def _widths(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


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
