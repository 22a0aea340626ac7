"""Where a phase's logits come from: here images through the whole net (`features` knows a shorter way).

Pixels stay uint8 until they are on the device; a step asks the device for nothing, so the host never waits in it.

Shapes: N samples, C channels, H height, W width (pixels), K classes.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from toolkit.bundle import Preprocessing
from toolkit.data import Augment, Images, Normalise, draws_NK
from toolkit.training import processes
from toolkit.training.loss import Targets
from toolkit.training.mixing import mix
from toolkit.training.options import FitOptions
from toolkit.training.schedule import Phase
from toolkit.training.source import source_of
from toolkit.training.transfer import Indices, indices, sent


@dataclass(frozen=True)
class Moment:
    """The step a batch is for: with the images' indices it fixes everything random about the batch."""

    seed: int
    epoch: int
    step: int


Split = Literal["train", "val"]
SMALL_STEP = 1 << 25
"""Multiply-adds below which a head's step runs on one thread: a second one gains nothing there, and where other programs
compete for the cores, waiting for it was measured to cost 24 to 96 ms a step instead of 1. That holds on features computed once
and on the long way alike: the number of threads shows in the last bits."""

Tick = Callable[[], None]
"""Called before each batch of a long pass; raises to leave it."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned: the images, how they become the net's input, the options, and perhaps a teacher."""

    train: Images
    val: Images
    preprocessing: Preprocessing
    options: FitOptions
    teacher: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """The outcome of one forward pass in training."""

    logits_NK: Tensor
    targets: Targets
    teacher_NK: Tensor | None


class Feed(Protocol):
    """Runs batches forward. `steps_per_call` steps make one round through the loop; `threads` None leaves torch's setting."""

    steps_per_call: int
    threads: int | None

    def expect(self, batches: Sequence[Indices], *, split: Split) -> None:
        """Say which batches of `split` will be asked for next, in order."""
        ...

    def compose(self, batch: Indices, *, moment: Moment) -> tuple[Tensor, Targets]:
        """What the net (or the head) is given for the training samples `batch` at `moment`, and their targets."""
        ...

    def train(self, batch: Indices, *, moment: Moment) -> Batch:
        """Logits and targets of the training samples `batch` at `moment`."""
        ...

    def validate(self, batch: Indices) -> Tensor:
        """logits_NK of the validation samples `batch`."""
        ...


class ImageFeed:
    """Images through the whole net; augmented and mixed, shown in a fixed number of views, or as they are: as `phase` says."""

    steps_per_call = 1
    threads: int | None = None

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        task: Task,
        *,
        device: torch.device,
        channels_last: bool,
        phase: Phase,
        head: nn.Module | None = None,
    ) -> None:
        self.net, self.task, self.device = net, task, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.normalise = Normalise(task.preprocessing).to(device)
        self.sources = {"train": source_of(task.train, device), "val": source_of(task.val, device)}
        self.train_targets_N = sent(task.train.targets_N, device)
        varied = task.options.augment if phase.augment else None
        self.augment = None if varied is None else Augment(varied).to(device)
        self.mixing = phase.augment and not phase.views and max(task.options.mixup, task.options.cutmix) > 0
        self.num_views = phase.views if self.augment is not None else 0 if self.mixing else 1
        self.teacher_NK: Tensor | None = None
        weights = 0 if head is None else sum(parameter.numel() for parameter in head.parameters())
        small = phase.depth == 0 and weights * task.options.images_a_step < SMALL_STEP
        self.light_head = head if small else None

    def remember_teacher(self, tick: Tick) -> None:
        """Where each image is seen in a fixed number of views, ask the teacher about each of them once."""
        if self.task.teacher is None or not self.num_views:
            return
        answers = []
        for view in range(self.num_views):
            for batch in self.all_batches("train"):
                tick()
                answers.append(self._ask(self._varied(batch, view).float()))
        self.teacher_NK = torch.cat(answers)

    def rows(self, batch: Indices, moment: Moment) -> Tensor:
        """Where `batch` lies at `moment` among all views of all training images, one view after the other."""
        if self.num_views == 1:
            return batch.here_N
        return batch.here_N + moment.epoch % self.num_views * len(self.train_targets_N)

    def all_batches(self, split: Split) -> list[Indices]:
        """Every sample of `split` once, in order, in batches that are fetched ahead."""
        count = len(self.task.train if split == "train" else self.task.val)
        batches = indices(torch.arange(count).split(self.task.options.images_a_step), self.device)
        self.expect(batches, split=split)
        return batches

    def expect(self, batches: Sequence[Indices], *, split: Split) -> None:
        self.sources[split].expect(batches)

    def compose(self, batch: Indices, *, moment: Moment) -> tuple[Tensor, Targets]:
        images_NCHW = self._varied(batch, moment.epoch % self.num_views if self.num_views else moment.epoch)
        targets = Targets(self.train_targets_N[batch.here_N])
        if self.mixing:
            options = self.task.options
            draw = (moment.seed, moment.step, processes.rank())
            images_NCHW, targets = mix(images_NCHW, targets.first_N, mixup=options.mixup, cutmix=options.cutmix, draw=draw)
        return images_NCHW.float(), targets

    def train(self, batch: Indices, *, moment: Moment) -> Batch:
        images_NCHW, targets = self.compose(batch, moment=moment)
        return Batch(self._forward(images_NCHW), targets, self._teacher(images_NCHW, batch, moment))

    def validate(self, batch: Indices) -> Tensor:
        return self._forward(self.sources["val"].take(batch).float())

    def of_view(self, batch: Indices, view: int) -> Tensor:
        """logits_NK of training images in one of their views."""
        return self._forward(self._varied(batch, view).float())

    def sample(self, split: Split) -> Tensor:
        """The first image of `split` (1, C, H, W), unaugmented."""
        (batch,) = indices([torch.tensor([0])], self.device)
        return self.sources[split].take(batch).float()

    def _varied(self, batch: Indices, epoch: int) -> Tensor:
        """The training images `batch` as they look in the epoch, or view, `epoch`."""
        images_NCHW = self.sources["train"].take(batch)
        if self.augment is None:
            return images_NCHW
        return self.augment(images_NCHW, draws_NK=draws_NK(batch.here_N, seed=self.task.options.seed, epoch=epoch))

    def _teacher(self, images_NCHW: Tensor, batch: Indices, moment: Moment) -> Tensor | None:
        """The teacher's logits_NK of a training batch, remembered ones where there are; None without a teacher."""
        if self.task.teacher is None:
            return None
        return self._ask(images_NCHW) if self.teacher_NK is None else self.teacher_NK[self.rows(batch, moment)]

    def _forward(self, images_NCHW: Tensor) -> Tensor:
        return self.through(self.net, images_NCHW)

    def through(self, net: Callable[[Tensor], Tensor], images_NCHW: Tensor) -> Tensor:
        """The logits_NK that `net` gives for images, normalised and laid out as the phase has them."""
        with self._lightly():
            found = net(self.normalise(images_NCHW).contiguous(memory_format=self.layout))
        return found if isinstance(found, Tensor) else found[0]  # GoogLeNet and Inception add auxiliary logits in training

    @contextlib.contextmanager
    def _lightly(self) -> Iterator[None]:
        """Let a light head run on one thread; where gradients are wanted, what is left of the step too."""
        if self.light_head is None:
            yield
            return
        before = torch.get_num_threads()
        handle = self.light_head.register_forward_pre_hook(lambda _module, _inputs: torch.set_num_threads(1))
        try:
            yield
        finally:
            handle.remove()
            if not torch.is_grad_enabled():
                torch.set_num_threads(before)

    def _ask(self, images_NCHW: Tensor) -> Tensor:
        assert self.task.teacher is not None
        with torch.no_grad():
            return self.task.teacher(images_NCHW)


def validation_logits(feed: Feed, task: Task, *, device: torch.device, tick: Tick) -> Tensor:
    """logits_NK of all validation samples, the batches shared among the processes.

    Where they do not come out even, some processes take a batch a second time: a sharded net computes with all of them or not.
    """
    count, num_classes = len(task.val), len(task.train.labels)
    logits_NK = torch.zeros(count, num_classes, device=device)
    batches = indices(torch.arange(count).split(task.options.images_a_step), device)
    num_rounds = -(-len(batches) // processes.world_size())
    mine = range(processes.rank(), num_rounds * processes.world_size(), processes.world_size())
    feed.expect([batches[number % len(batches)] for number in mine], split="val")
    for number in mine:
        tick()
        batch = batches[number % len(batches)]
        found_NK = feed.validate(batch).float()
        if number < len(batches):
            logits_NK[batch.here_N] = found_NK
    processes.sum_in_place([logits_NK])
    return logits_NK
