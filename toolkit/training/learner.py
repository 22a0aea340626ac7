"""The one LightningModule: it trains any net through the phases of a schedule.

Lightning gives it devices, processes, the epoch loop and loggers. Optimisation is manual, sums stay on the device, and
metrics are logged once an epoch, because logging through the framework costs more than a small step itself. All state a
resumed run needs is kept here, not in Lightning's loops: the loader hands out numbers of steps, never data, so there is no
second account of the position that could disagree. All randomness of a step follows from (seed, step), but for the
generator of Dropout, whose state goes into the checkpoint.

Shapes: N samples, K classes.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.pruning import reestimate_batchnorm
from toolkit.training import processes
from toolkit.training.average import Average
from toolkit.training.carrying import Carried, cut_net
from toolkit.training.course import Course
from toolkit.training.features import shortened
from toolkit.training.feed import Feed, ImageFeed, Moment, Task, validation_logits
from toolkit.training.freeze import in_eval_mode, running_statistics, set_modes, unfreeze
from toolkit.training.guard import FiniteGuard
from toolkit.training.loss import objective
from toolkit.training.metrics import scores
from toolkit.training.optimiser import build_optimiser, clip, rate_factor, set_rate
from toolkit.training.order import StepCounts, epoch_batches, num_batches
from toolkit.training.post_mortem import post_mortem
from toolkit.training.progress import title_of
from toolkit.training.schedule import Phase, Schedule
from toolkit.training.sharding import gathered, locals_of, parted_weights, shard
from toolkit.training.state import kept_weights, restore, state_of
from toolkit.training.surroundings import Stopped, Surroundings
from toolkit.training.tally import Tally
from toolkit.training.trainer import num_threads
from toolkit.training.transfer import indices


class Learner(LightningModule):
    """Trains `net` on `task` through `schedule`; `state`, a checkpoint's content, continues an interrupted run."""

    def __init__(
        self, net: nn.Module, *, task: Task, schedule: Schedule, around: Surroundings, state: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.task, self.schedule, self.around = net, task, schedule, around
        self.course = Course() if state is None else Course.from_state_dict(state["course"])
        self._state = state
        if state is not None:
            cut_net(net, self.course.removed, channels_last=around.spec.channels_last is True)
            net.load_state_dict(state["net"])
        self._call = torch.compile(net) if around.spec.compile is True else net
        self._number_format = around.spec.autocast_dtype  # asking the drivers costs more than a small step
        self._sharded = around.spec.strategy == "fsdp"
        self._saved_at_s = self._watch_s = time.monotonic()
        self._average: Average | None = None

    # -- hooks Lightning calls ----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """The processes have met: all take the first one's weights, and each its part where the net is sharded."""
        processes.copy_from_first(self.net, self.trainer.strategy.root_device)
        if self._sharded:
            shard(self.net, self.around.head, device_type=self.around.spec.device_type)
            self.course.best = parted_weights(self.course.best, self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Freeze for the present phase and build its optimiser."""
        self._freeze()
        return self._optimiser

    def on_fit_start(self) -> None:
        """The net is on its device: prepare the present phase, at its start or where the checkpoint left it."""
        options, train = self.task.options, self.task.train
        self._objective = objective(options, train.targets_N, len(train.labels), self.device)
        self._num_batches = num_batches(len(train), batch_size=options.images_a_step, world_size=processes.world_size())
        if self.task.teacher is not None:
            self.task.teacher.to(self.device).eval()
        self._begin_phase(self._state)
        self._state = None

    def train_dataloader(self) -> StepCounts:
        """How many steps each call of `training_step` is to take, until the epoch is over."""
        return StepCounts(lambda: self._num_batches - self.course.batch, lambda: self._feed.steps_per_call)

    def on_train_start(self) -> None:
        """Lightning has installed its own signal handlers by now: put ours back."""
        self.around.signals.listen()

    def training_step(self, num_steps: int, batch_idx: int) -> None:
        """Take `num_steps` optimiser steps, saving when it is time to."""
        with num_threads(self._feed.threads):
            for _ in range(num_steps):
                self._step()
                self._pause()
        self.around.progress.advance(num_steps)

    def on_train_epoch_end(self) -> None:
        """Validate, keep the best weights, log, and move to the next epoch, phase or the end."""
        course, phase = self.course, self._phase
        self._guard.look()
        record = self._record()
        course.history.append(record)
        self.around.progress.epoch(record)
        for logger in self.loggers:
            logger.log_metrics(record, step=len(course.history))
            logger.save()
        if course.next_epoch(num_epochs=phase.epochs, patience=self.task.options.patience):
            self._begin_epoch(self._feed)
            self._pause()
        else:
            self.around.progress.phase_done()
            course.next_phase(len(self.schedule.phases))
            self.net.load_state_dict(course.best)
            if course.finished:
                self.trainer.should_stop = True
                course.best = gathered(course.best)
            else:
                self._begin_phase(None)
            self.save()

    # -- phases and epochs --------------------------------------------------------------------------------------------

    @property
    def _phase(self) -> Phase:
        return self.schedule.phases[self.course.phase]

    def _freeze(self) -> None:
        phase, options = self._phase, self.task.options
        unfreeze(self.net, self.around.stages, depth=phase.depth)
        self._optimiser = build_optimiser(self.net, self.around.stages, phase, weight_decay=options.weight_decay)
        self._set_modes()
        self._learning = [p for group in self._optimiser.param_groups for p in group["params"]]

    def _set_modes(self) -> None:
        set_modes(self.net, head_only=self._phase.depth == 0, freeze_batchnorm=self.task.options.freeze_batchnorm)

    def _begin_phase(self, state: Mapping[str, Any] | None) -> None:
        """Set the present phase up; `state` holds what a checkpoint knew of it."""
        phase, spec = self._phase, self.around.spec
        if state is None and self.course.phase > 0:
            self._freeze()
            self.course.best = kept_weights(self.net)  # other parameters are shared now
        self._equip()
        if state is not None:
            restore(state, self._optimiser, self._average, self.device)
        done = self.course.epoch * self._num_batches + self.course.batch
        self.around.progress.phase(phase, num_steps=phase.epochs * self._num_batches, done=done)
        self._begin_epoch(None)
        head = None if spec.compile is True else self.around.head
        self._images = ImageFeed(
            self._call, self.task, device=self.device, channels_last=spec.channels_last is True, phase=phase, head=head
        )
        self._feed: Feed = self._features(self._images) or self._images
        self._feed.expect(self._batches[self.course.batch :], split="train")

    def _equip(self) -> None:
        """What goes with the present optimiser: the weight average and the guard, both new."""
        self.trainer.strategy.optimizers = [self._optimiser]
        live = {name: p for name, p in self.net.named_parameters() if p.requires_grad} | running_statistics(self.net)
        decay, where = self.task.options.ema_decay, f"phase {self.course.phase + 1}, {title_of(self._phase)}"
        self._average = Average(live, decay=decay) if decay else None
        self._guard = FiniteGuard(self._optimiser, device=self.device, where=where, explain=self._explain)

    def cut(self, plan: Plan, batches_NCHW: Iterable[Tensor]) -> None:
        """Cut the net by `plan` between two epochs, refresh BatchNorm on normalised images, and go on with what stays."""
        carried = Carried(self.net, self._optimiser, self._average)
        cut_net(self.net, plan, channels_last=self.around.spec.channels_last is True)
        reestimate_batchnorm(self.net, batches_NCHW)
        processes.copy_from_first(self.net, self.device)
        self._freeze()
        self._equip()
        carried.give(self.net, self._optimiser, self._average, plan)
        self.course.pruned(plan)
        self._feed = self._images  # what was computed once is of another net

    def _features(self, images: ImageFeed) -> Feed | None:
        self.around.progress.passes("looking at every image once")
        with self._autocast():
            images.remember_teacher(self._tick)
            if not self.around.spec.cache_features:
                return None
            feed, seconds = shortened(self.net, self.around, images, phase=self._phase, tick=self._tick)
        if seconds:
            self.course.notes["feature_seconds"] = seconds
        return feed

    def _begin_epoch(self, feed: Feed | None) -> None:
        train, options, epoch = self.task.train, self.task.options, len(self.course.history)
        size, place = options.images_a_step, processes.place()
        batches_N = epoch_batches(len(train), batch_size=size, seed=options.seed, epoch=epoch, shards=train.shards, **place)
        self._batches = indices(batches_N, self.device)
        self._tally = Tally(self.course.tally, device=self.device)
        if feed is not None:
            feed.expect(self._batches, split="train")

    # -- one step -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        course, options = self.course, self.task.options
        done = course.epoch * self._num_batches + course.batch
        factor = rate_factor(done, num_steps=self._phase.epochs * self._num_batches, warmup=self._phase.warmup)
        set_rate(self._optimiser, factor)
        moment = Moment(options.seed, len(course.history), course.num_steps)
        with self._autocast():
            batch = self._feed.train(self._batches[course.batch], moment=moment)
        terms_T, weights_T = self._objective(batch.logits_NK, batch.targets, batch.teacher_NK)
        told_T, right = terms_T.detach().clone(), (batch.logits_NK.argmax(1) == batch.targets.first_N).sum().to(weights_T)
        processes.sum_in_place([weights_T, told_T, right])
        loss = (terms_T / weights_T).sum()  # this process's part of the batch's mean loss
        self._tally.add((told_T / weights_T).sum() * weights_T[0], weights_T[0], right)
        loss.backward()
        gradients = locals_of(p.grad for p in self._learning if p.grad is not None)
        if not self._sharded:
            processes.sum_in_place(gradients)
        norm = clip(gradients, norm=options.clip_norm, parts=self._sharded)
        self._guard.admit(course.num_steps + 1, loss, norm)
        self._optimiser.step()
        for parameter in self._learning:
            parameter.grad = None
        if self._average is not None:
            self._average.update()
        course.num_steps += 1
        course.batch += 1

    def _explain(self, step: int) -> str:
        """What step `step` of this epoch, whose update was held back, died of."""
        course = self.course
        batch = self._batches[course.batch - (course.num_steps - (step - 1))]
        moment, keys = Moment(self.task.options.seed, len(course.history), step - 1), self.task.train.keys
        path = self.around.checkpoints.directory.parent / f"diverged_step_{step}{processes.suffix()}"
        with self._autocast():
            return post_mortem(self.net, self._feed, self._objective, batch, moment=moment, keys=keys, path=path)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        kind = self._number_format
        return contextlib.nullcontext() if kind is None else torch.autocast(self.device.type, kind)

    # -- the end of an epoch ------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, float]:
        """Validate (the averaged weights, where there are any), keep them if they are the best, and describe the epoch."""
        processes.average_in_place(list(running_statistics(self.net).values()))
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            found = scores(self._validate(), self.task.val.targets_N)
            if self.course.is_best(found, self.task.options.monitor):
                self.course.best = kept_weights(self.net)
        self.course.tally = self._tally.so_far()
        count = min(len(self.task.train), self._num_batches * self.task.options.images_a_step)
        self._clock()
        return self.course.record(found, lr=max(group["lr"] for group in self._optimiser.param_groups), count=count)

    def _validate(self) -> Tensor:
        with in_eval_mode(self.net), torch.no_grad(), self._autocast(), num_threads(self._feed.threads):
            return validation_logits(self._feed, self.task, device=self.device, tick=self._tick)

    # -- saving, stopping, resuming -----------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Between two batches: leave when a signal asks for it; what is unwound on the way leaves a state to save."""
        if self.around.signals.received is not None and not self._sharded:
            raise Stopped

    def _pause(self) -> None:
        """Between two steps: save when it is time to, leave when a signal asks for it; a sharded net's processes agree."""
        self._tick()
        stops, saves = 0, int(time.monotonic() - self._saved_at_s >= self.around.spec.checkpoint_every_s)
        if self._sharded:
            stops, saves = processes.largest(self.around.signals.received or 0, saves)
        if stops or saves:
            self.save()
        if stops:
            self.around.signals.received = stops
            raise Stopped

    def save(self) -> None:
        """Write a checkpoint, if all is finite (else `Diverged`); only the first process does."""
        self._guard.look()
        self._clock()
        self.course.tally = self._tally.so_far()
        state = state_of(self.net, self.course, self._optimiser, self._average, self.device)
        if processes.rank() == 0:
            self.around.checkpoints.save(state)
        self._saved_at_s = time.monotonic()

    def _clock(self) -> None:
        before_s, self._watch_s = self._watch_s, time.monotonic()
        self.course.seconds += self._watch_s - before_s
