"""Pruning inside a running fit: the net loses channels at the start of chosen epochs, and training goes on with the rest.

The optimiser's moments and the weight average keep what belongs to the channels that stay; the learning rate follows the step
count, which pruning does not touch. What was cut so far is part of the course, and so of every checkpoint: a resumed fit cuts
the net before it loads the weights. Of several processes the first decides, and all compare what they have cut.

N images, C channels, H, W pixels.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.data import Normalise
from toolkit.errors import EnvironmentProblem, UsageError
from toolkit.pruning import Budget, Criterion, NothingToPrune, PruneOptions, Steps, count_macs
from toolkit.training import processes
from toolkit.training.feed import Task
from toolkit.training.options import FitOptions
from toolkit.training.schedule import Schedule

if TYPE_CHECKING:
    from toolkit.training.learner import Learner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruning:
    """One step towards `budget` at the start of each of `epochs`, which count from 0 over all phases of the fit.

    The steps share the way evenly; `options.steps` does not count here.
    """

    epochs: Sequence[int]
    budget: Budget
    criterion: Criterion
    options: PruneOptions

    def __post_init__(self) -> None:
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 0:
            raise UsageError(
                f"the epochs to prune at are {list(self.epochs)}; give some, from 0, in ascending order, like [0,2,4]."
            )

    def require_fits(self, schedule: Schedule, options: FitOptions) -> None:
        """Raise `UsageError` where the schedule does not reach one of the epochs, or only the head learns in it."""
        depths = [phase.depth for phase in schedule.phases for _ in range(phase.epochs)]
        if self.epochs[-1] >= len(depths):
            raise UsageError(
                f"pruning is to happen at epoch {self.epochs[-1]} (counted from 0), and the schedule has {len(depths)} epochs: "
                "train longer or prune earlier."
            )
        probing = [epoch for epoch in self.epochs if depths[epoch] == 0]
        if probing:
            raise UsageError(
                f"pruning is to happen at epoch {probing[0]} (counted from 0), in which only the head learns, so nothing could "
                "recover: prune in a phase that trains the backbone."
            )
        if options.patience is not None:
            raise UsageError(
                "with patience a phase may end before its pruning: set options.patience=null to prune inside a fit."
            )


class PruneInFit(Callback):
    """Carries out `how` on the net of a learner. Made with the net as it is before the fit, whose shares the budget means."""

    def __init__(self, how: Pruning, net: nn.Module, task: Task) -> None:
        self.how, self.task = how, task
        self.normalise = Normalise(task.preprocessing)
        options = replace(how.options, steps=len(how.epochs))
        self.images = [
            self._images(batch_N) for batch_N in self._drawn(options.num_batches * options.batch_size, options.batch_size)
        ]
        self.example_NCHW = self.images[0][0][:1]
        self.steps = Steps(net, self.example_NCHW, criterion=how.criterion, budget=how.budget, options=options)
        self.whole = count_macs(net, self.example_NCHW)

    def on_train_epoch_start(self, trainer: Any, pl_module: "Learner") -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prune where it is due and not done; a resumed epoch that had begun was pruned before."""
        course, epochs = pl_module.course, self.how.epochs
        while course.num_prunings < len(epochs) and epochs[course.num_prunings] <= len(course.history) and course.batch == 0:
            self._prune(pl_module, course.num_prunings + 1)

    def _prune(self, learner: "Learner", step: int) -> None:
        plan = processes.decided_by_first(lambda: self._planned(learner.net, step, first=not learner.course.plan))
        images = (self._images(batch_N)[0].to(learner.device) for batch_N in self._drawn(self.how.options.bn_images, 64))
        if plan:
            learner.cut(plan, images)
        else:
            learner.course.pruned(plan)
        digest = hashlib.sha256(json.dumps(learner.course.plan, sort_keys=True).encode()).hexdigest()
        if len(set(processes.gathered(digest))) > 1:
            raise EnvironmentProblem(
                "The processes of this fit have cut different channels: they did not start from the same state. Start the fit "
                "again, every process with the same run_dir."
            )
        share = count_macs(learner.net, self.example_NCHW.to(learner.device)) / self.whole
        logger.info("pruning step %d of %d, inside the fit: %.1f%% of the MACs", step, len(self.how.epochs), 100 * share)

    def _planned(self, net: nn.Module, step: int, *, first: bool) -> Plan:
        """What to cut now, decided on a copy; nothing where the step's aim is met already."""
        twin = copy.deepcopy(net).cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        try:
            return self.steps.plan(twin, step, self.images)
        except NothingToPrune:
            if step == len(self.how.epochs) and first:
                raise
            return Plan()

    def _drawn(self, num: int, size: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.how.options.seed)
        drawn_N = torch.randperm(len(self.task.train), generator=generator)[:num]
        return [batch_N for batch_N in drawn_N.split(size) if len(batch_N) > 1]

    def _images(self, indices_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalise(self.task.train.read(indices_N)), self.task.train.targets_N[indices_N]
