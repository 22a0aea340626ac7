"""Where a phase's logits come from: images through the whole net, or features through the head alone.

While nothing below the head learns and the images stay as they are, the head's input is the same every epoch. It is then
computed once, captured where the head takes it (a forward pre-hook, so no architecture is known by name), and the head
trains on it: the same head weights, bit for bit, many times faster. The capture is checked on the first batch: where the
head's output is not the net's (SqueezeNet pools after its last convolution), the phase goes through the whole net.

Shapes: N samples, C channels, H height, W width (pixels), F features, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.bundle import Preprocessing
from toolkit.data import Augment, Normalise, Pixels, draws_NK
from toolkit.training import processes
from toolkit.training.loss import Targets
from toolkit.training.mixing import mix
from toolkit.training.options import FitOptions


@dataclass(frozen=True)
class Moment:
    """The step a batch is for: with the images' indices it fixes everything random about the batch."""

    seed: int
    epoch: int
    step: int


Tick = Callable[[], None]
"""Called before each batch of a long pass; raises to leave it."""


SMALL_STEP = 1 << 25
"""Multiply-adds below which a head's step runs on one thread: a second one gains nothing there, and where other programs
compete for the cores, waiting for it was measured to cost 24 to 96 ms a step instead of 1."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned: the images, how they become the net's input, the options, and perhaps a teacher."""

    train: Pixels
    val: Pixels
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

    def train(self, indices_N: Tensor, *, moment: Moment) -> Batch:
        """Logits and targets of the training samples `indices_N` at `moment`."""
        ...

    def validate(self, indices_N: Tensor) -> Tensor:
        """logits_NK of the validation samples `indices_N`."""
        ...


class ImageFeed:
    """Images through the whole net; augmented and mixed where `augment` is set."""

    steps_per_call = 1
    threads: int | None = None

    def __init__(
        self, net: Callable[[Tensor], Tensor], task: Task, *, device: torch.device, channels_last: bool, augment: bool
    ) -> None:
        self.net, self.task, self.device = net, task, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.normalise = Normalise(task.preprocessing).to(device)
        self.train_NCHW = resident(task.train.images_NCHW, device)
        self.val_NCHW = resident(task.val.images_NCHW, device)
        self.train_targets_N = task.train.targets_N.to(device)
        self.augment = Augment(task.options.augment).to(device) if augment and task.options.augment is not None else None
        self.mixing = augment and max(task.options.mixup, task.options.cutmix) > 0
        self.teacher_NK: Tensor | None = None

    @property
    def is_steady(self) -> bool:
        """Whether an image looks the same every time."""
        return self.augment is None and not self.mixing

    def remember_teacher(self, tick: Tick) -> None:
        """Where the images stay the same, ask the teacher about each of them once."""
        if self.task.teacher is None or not self.is_steady:
            return
        answers = []
        for indices_N in torch.arange(len(self.task.train)).split(self.task.options.batch_size):
            tick()
            answers.append(self._ask(self._take(self.train_NCHW, indices_N).float()))
        self.teacher_NK = torch.cat(answers)

    def train(self, indices_N: Tensor, *, moment: Moment) -> Batch:
        images_NCHW = self._take(self.train_NCHW, indices_N)
        targets = Targets(self.train_targets_N[indices_N.to(self.device)])
        if self.augment is not None:
            draws = draws_NK(indices_N.to(self.device), seed=moment.seed, epoch=moment.epoch)
            images_NCHW = self.augment(images_NCHW, draws_NK=draws)
        if self.mixing:
            options = self.task.options
            images_NCHW, targets = mix(
                images_NCHW,
                targets.first_N,
                mixup=options.mixup,
                cutmix=options.cutmix,
                draw=(moment.seed, moment.step, processes.rank()),
            )
        images_NCHW = images_NCHW.float()
        return Batch(self._forward(images_NCHW), targets, self.teacher(images_NCHW, indices_N))

    def teacher(self, images_NCHW: Tensor, indices_N: Tensor) -> Tensor | None:
        """The teacher's logits_NK of a training batch, remembered ones where there are; None without a teacher."""
        if self.task.teacher is None:
            return None
        return self._ask(images_NCHW) if self.teacher_NK is None else self.teacher_NK[indices_N.to(self.device)]

    def validate(self, indices_N: Tensor) -> Tensor:
        return self._forward(self._take(self.val_NCHW, indices_N).float())

    def steady(self, indices_N: Tensor) -> Tensor:
        """logits_NK of unaugmented training images."""
        return self._forward(self._take(self.train_NCHW, indices_N).float())

    def _forward(self, images_NCHW: Tensor) -> Tensor:
        found = self.net(self.normalise(images_NCHW).contiguous(memory_format=self.layout))
        return found if isinstance(found, Tensor) else found[0]  # GoogLeNet and Inception add auxiliary logits in training

    def _ask(self, images_NCHW: Tensor) -> Tensor:
        assert self.task.teacher is not None
        with torch.no_grad():
            return self.task.teacher(images_NCHW)

    def _take(self, images_NCHW: Tensor, indices_N: Tensor) -> Tensor:
        return images_NCHW[indices_N.to(images_NCHW.device)].to(self.device, non_blocking=True)


class FeatureFeed:
    """Features, computed once, through the head alone."""

    steps_per_call = 64

    def __init__(self, head: nn.Module, images: ImageFeed, *, train_features: Tensor, val_features: Tensor) -> None:
        self.head, self.images = head, images
        self.train_features, self.val_features = train_features, val_features
        self.train_targets_N = images.train_targets_N
        weights = sum(parameter.numel() for parameter in head.parameters())
        self.threads = 1 if weights * images.task.options.batch_size < SMALL_STEP else None

    def train(self, indices_N: Tensor, *, moment: Moment) -> Batch:
        at_N = indices_N.to(self.images.device)
        teacher_NK = None if self.images.teacher_NK is None else self.images.teacher_NK[at_N]
        return Batch(self._head(self.train_features[at_N]), Targets(self.train_targets_N[at_N]), teacher_NK)

    def validate(self, indices_N: Tensor) -> Tensor:
        return self._head(self.val_features[indices_N.to(self.images.device)])

    def _head(self, features: Tensor) -> Tensor:
        return self.head(features).flatten(1)


def feature_feed(net: nn.Module, head: nn.Module, images: ImageFeed, *, num: int, tick: Tick) -> FeatureFeed | None:
    """Compute the head's input for every training and validation image, in batches of `num`; None where that is not exact.

    The net must be in the mode it trains in, with nothing but `head` learning.
    """
    if not images.is_steady:
        return None
    found: list[list[Tensor]] = [[], []]
    with torch.no_grad(), _captured(head) as taken:
        passes = ((images.steady, len(images.task.train)), (images.validate, len(images.task.val)))
        for features, (forward, count) in zip(found, passes, strict=True):
            for indices_N in torch.arange(count).split(num):
                tick()
                taken.clear()
                logits_NK = forward(indices_N)
                if len(taken) != 1:
                    return None
                if not features and not torch.equal(_outside(head, taken[0]).flatten(1), logits_NK):
                    return None
                features.append(taken[0])
    return FeatureFeed(head, images, train_features=torch.cat(found[0]), val_features=torch.cat(found[1]))


@contextlib.contextmanager
def _captured(head: nn.Module) -> Iterator[list[Tensor]]:
    taken: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken.append(inputs[0].detach().clone())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield taken
    finally:
        handle.remove()


def _outside(head: nn.Module, features: Tensor) -> Tensor:
    return type(head).forward(head, features)


def resident(images_NCHW: Tensor, device: torch.device, *, share: float = 0.4) -> Tensor:
    """The images on the device when they take at most `share` of its free memory; else pinned on the host."""
    if device.type != "cuda":
        return images_NCHW.to(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if images_NCHW.nbytes <= share * free_bytes:
        return images_NCHW.to(device)
    return images_NCHW.pin_memory()


def validation_logits(feed: Feed, task: Task, *, device: torch.device, tick: Tick) -> Tensor:
    """logits_NK of all validation samples, the batches shared among the processes."""
    count, num_classes = len(task.val), len(task.train.labels)
    logits_NK = torch.zeros(count, num_classes, device=device)
    for index, indices_N in enumerate(torch.arange(count).split(task.options.batch_size)):
        tick()
        if index % processes.world_size() == processes.rank():
            logits_NK[indices_N.to(device)] = feed.validate(indices_N).float()
    processes.sum_in_place([logits_NK])
    return logits_NK
