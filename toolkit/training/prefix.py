"""Where a frozen beginning ends: what it gives is computed once, and the rest of the net trains on it.

While the last stages learn and the images stay as they are, the first learning module is given the same tensors every epoch.
They are captured once (a forward pre-hook, so no architecture is known by name). A step then calls the net as always, with
one stand-in image: modules before the boundary answer what they answered for it, and the boundary takes the captured tensors
instead. So any code between modules runs as it is written, at the cost of one image. Whether what comes after depends on
anything else (a skip connection around the boundary) shows on the first batch: where the logits are not the net's, bit for
bit, nothing is kept.

Shapes: N samples, C channels, H height, W width, K classes.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.training.feed import Batch, ImageFeed, Moment, Split, Tick
from toolkit.training.freeze import in_eval_mode
from toolkit.training.loss import Targets
from toolkit.training.shelf import Shelf
from toolkit.training.transfer import Indices

SHARE_OF_MEMORY = 0.25
"""What may be taken of a GPU's free memory."""


@dataclass(eq=False)
class Boundary:
    """The first learning module, the frozen modules that run before it, and what those gave for the stand-in image."""

    name: str
    entry: nn.Module
    answers: dict[nn.Module, list[Any]]

    @contextlib.contextmanager
    def given(self, features: Tensor) -> Iterator[None]:
        """Calls of the net begin at the boundary, with `features`."""
        handle = self.entry.register_forward_pre_hook(lambda _module, _inputs: (features,))
        own = {module: module.__dict__.get("forward") for module in self.answers}
        for module, answers in self.answers.items():
            module.forward = _Replay(module.forward, answers)
        try:
            yield
        finally:
            handle.remove()
            for module, forward in own.items():
                if forward is None:
                    del module.forward  # the class's again
                else:
                    module.forward = forward


class _Replay:
    """The recorded answers of a module, in order; after them what it computes."""

    def __init__(self, forward: Any, answers: Sequence[Any]) -> None:
        self.forward, self.answers = forward, deque(answers)

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        return self.answers.popleft() if self.answers else self.forward(*inputs, **more)


class KeptFeed:
    """Tensors computed once for every image, and what is left of the net (`_rest`) to run on them."""

    steps_per_call = 1
    threads: int | None = None

    def __init__(self, images: ImageFeed, features: Mapping[Split, Tensor], *, was_stored: bool = False) -> None:
        self.images, self.was_stored = images, was_stored
        self.train_features, self.val_features = (features[split].to(images.device) for split in ("train", "val"))
        self.train_targets_N = images.train_targets_N

    @property
    def num_bytes(self) -> int:
        """The size of the tensors, which lie on the device or, for the CPU, in mapped files."""
        return self.train_features.nbytes + self.val_features.nbytes

    def expect(self, batches: Sequence[Indices], *, split: Split) -> None:
        """Nothing to prepare: all of them lie on the device."""

    def compose(self, batch: Indices, *, moment: Moment) -> tuple[Tensor, Targets]:
        return self.train_features[self.images.rows(batch, moment)], Targets(self.train_targets_N[batch.here_N])

    def train(self, batch: Indices, *, moment: Moment) -> Batch:
        features, targets = self.compose(batch, moment=moment)
        teacher_NK = None if self.images.teacher_NK is None else self.images.teacher_NK[self.images.rows(batch, moment)]
        return Batch(self._rest(features), targets, teacher_NK)

    def validate(self, batch: Indices) -> Tensor:
        return self._rest(self.val_features[batch.here_N])

    def _rest(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class PrefixFeed(KeptFeed):
    """Captured tensors through the learning part of the net."""

    def __init__(
        self,
        net: nn.Module,
        images: ImageFeed,
        boundary: Boundary,
        features: Mapping[Split, Tensor],
        *,
        was_stored: bool = False,
    ) -> None:
        super().__init__(images, features, was_stored=was_stored)
        self.net, self.boundary, self.stand_in_1CHW = net, boundary, images.sample("val")
        self.what = f"what {boundary.name} is given"

    def _rest(self, features: Tensor) -> Tensor:
        with self.boundary.given(features):
            return self.images.through(self.net, self.stand_in_1CHW)


def find_boundary(net: nn.Module, images: ImageFeed) -> Boundary | None:
    """Where `net` begins to learn; None where it learns from its first module on, or takes more there than one tensor."""
    names = {module: name for name, module in net.named_modules()}
    finished: list[tuple[str, nn.Module, Any]] = []
    began: list[tuple[str, nn.Module, bool]] = []

    def begin(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        learns = any(parameter.requires_grad for parameter in module.parameters())
        if learns and not _has_frozen(module) and not began:
            single = len(inputs) == 1 and not keywords and isinstance(inputs[0], Tensor)
            began.append((names[module], module, single))

    def end(module: nn.Module, _inputs: Any, output: Any) -> None:
        if not began:
            finished.append((names[module], module, output))

    handles = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        images.through(net, images.sample("val"))
    finally:
        for handle in handles:
            handle.remove()
    if not began or not finished or not began[0][2]:
        return None
    answers: dict[nn.Module, list[Any]] = {}
    outer = {name for name, _, _ in finished}
    for name, module, output in finished:
        if not any(name.startswith(f"{other}.") for other in outer):
            answers.setdefault(module, []).append(output)
    return Boundary(began[0][0], began[0][1], answers)


def _has_frozen(module: nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in module.parameters())


def prefix_feed(net: nn.Module, images: ImageFeed, shelf: Shelf, tick: Tick) -> PrefixFeed | str:
    """What the frozen beginning of `net` gives for every image, or why it is not kept. The net's modes stay as they are."""
    with in_eval_mode(net), torch.no_grad():
        boundary = find_boundary(net, images)
        if boundary is None:
            return "no single tensor leads from the frozen part to the learning one"
        if (stored := shelf.stored()) is not None:
            return PrefixFeed(net, images, boundary, stored, was_stored=True)
        return _captured_feed(net, images, boundary, shelf, tick)


def _captured_feed(net: nn.Module, images: ImageFeed, boundary: Boundary, shelf: Shelf, tick: Tick) -> PrefixFeed | str:
    with captured(boundary.entry) as taken:
        for split, logits_NK in every_row(images, taken, tick):
            if len(taken) != 1:
                return f"{boundary.name} is called more than once"
            if not shelf.begun:
                if not _has_room(taken[0], images, shelf):
                    return f"there is no room for what {boundary.name} is given"
                if not _same(net, images, boundary, taken[0], logits_NK):
                    return f"what follows {boundary.name} does not depend on its input alone"
            shelf.put(split, taken[0])
    return PrefixFeed(net, images, boundary, shelf.close())


def every_row(images: ImageFeed, taken: list[Tensor], tick: Tick) -> Iterator[tuple[Split, Tensor]]:
    """Show every view of the training images and then the validation images to the net; `taken` holds the present batch's."""
    passes: list[tuple[Split, Callable[[Indices], Tensor]]] = [
        ("train", functools.partial(images.of_view, view=view)) for view in range(images.num_views)
    ]
    for split, forward in [*passes, ("val", images.validate)]:
        for batch in images.all_batches(split):
            tick()
            taken.clear()
            yield split, forward(batch)


def _has_room(features: Tensor, images: ImageFeed, shelf: Shelf) -> bool:
    """Whether the disk takes such rows for all images and, where the device is not the CPU, its memory too."""
    wanted = sum(shelf.counts.values()) * features.nbytes // len(features)
    on_cuda = images.device.type == "cuda"
    return shelf.fits(features) and not (on_cuda and wanted > SHARE_OF_MEMORY * torch.cuda.mem_get_info(images.device)[0])


def _same(net: nn.Module, images: ImageFeed, boundary: Boundary, features: Tensor, logits_NK: Tensor) -> bool:
    try:
        with boundary.given(features):
            return torch.equal(images.through(net, images.sample("val")), logits_NK)
    except RuntimeError:  # shapes of a single stand-in that the code between modules does not take
        return False


@contextlib.contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """What `module` is given, a tensor a call, for as long as the context lasts."""
    taken: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: taken.append(inputs[0].detach().clone()))
    try:
        yield taken
    finally:
        handle.remove()
