"""Features, computed once: the short way from images to logits while nothing below the head learns.

While nothing below the head learns and the images stay as they are, the head's input is the same every epoch. It is then
computed once, captured where the head takes it (a forward pre-hook, so no architecture is known by name), and the head
trains on it: the same head weights, bit for bit, many times faster. The capture is checked on the first batch: where the
head's output is not the net's (SqueezeNet pools after its last convolution), the phase goes through the whole net.

Shapes: N samples, F features, K classes.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.training import processes
from toolkit.training.feed import Feed, ImageFeed, Split, Tick
from toolkit.training.prefix import KeptFeed, PrefixFeed, captured, every_row, prefix_feed
from toolkit.training.progress import title_of
from toolkit.training.schedule import Phase
from toolkit.training.sharding import is_sharded
from toolkit.training.shelf import Shelf, key_of
from toolkit.training.surroundings import Surroundings
from toolkit.training.trainer import num_threads

logger = logging.getLogger(__name__)


class FeatureFeed(KeptFeed):
    """Features, computed once, through the head alone."""

    steps_per_call = 64
    what = "features"

    def __init__(
        self, head: nn.Module, images: ImageFeed, features: Mapping[Split, Tensor], *, was_stored: bool = False
    ) -> None:
        super().__init__(images, features, was_stored=was_stored)
        self.head = head
        self.threads = None if images.light_head is None else 1

    def _rest(self, features: Tensor) -> Tensor:
        return self.head(features).flatten(1)


def shortened(
    net: nn.Module, around: Surroundings, images: ImageFeed, *, phase: Phase, tick: Tick
) -> tuple[Feed | None, float]:
    """The short way through `phase` where it pays, and the seconds it took to prepare; what it saves, or why not, is logged.

    With nothing but the head learning it is the head alone, else the net from its first learning module on (`prefix`). What is
    computed once is stored in `around.features`, and taken from there where a stopped run has left it.
    """
    name, started_s = title_of(phase), time.perf_counter()
    reason = _long_way(net, images, phase)
    feed: FeatureFeed | PrefixFeed | None = None
    if not reason:
        shelf = _shelf(net, images, phase, around.features)
        try:
            short = (
                feature_feed(net, around.head, images, shelf, tick)
                if phase.depth == 0
                else prefix_feed(net, images, shelf, tick)
            )
        finally:
            shelf.discard()
        feed, reason = (None, short) if isinstance(short, str) else (short, "")
    seconds = time.perf_counter() - started_s
    if feed is None:
        _say(f"{name}: every image goes through the whole net in each of {phase.epochs} epochs; {reason}.")
        return None, 0.0
    _say(
        f"{name}: {feed.what} {'taken up again' if feed.was_stored else 'computed once'}, {seconds:.1f} s and "
        f"{feed.num_bytes / 2**20:.1f} MiB; "
        f"{_saving(images, phase)}."
    )
    return feed, seconds


def _saving(images: ImageFeed, phase: Phase) -> str:
    if images.num_views == 1:
        return f"a pass like it is saved in each of {phase.epochs} epochs"
    return f"all {images.num_views} views of each image, instead of a pass in each of {phase.epochs} epochs"


def _long_way(net: nn.Module, images: ImageFeed, phase: Phase) -> str:
    """Why nothing can be computed once; empty where it can."""
    if not images.num_views:
        return "augmentation shows other images each time"
    if images.num_views > 1 and phase.epochs <= images.num_views:
        return f"with {images.num_views} views of each image none is seen twice"
    if phase.depth < 0:
        return "all of it learns"
    if phase.depth > 0 and phase.epochs == 1:
        return "keeping what its frozen part gives pays from the second epoch on"
    if phase.depth > 0 and (images.net is not net or is_sharded(net)):
        return "a compiled or sharded net runs as a whole"
    return ""


def _say(text: str) -> None:
    if processes.is_first():
        logger.info("%s", text)


def _shelf(net: nn.Module, images: ImageFeed, phase: Phase, directory: Path) -> Shelf:
    """Where this phase's tensors lie; what phases before it left there is removed."""
    name = f"{title_of(phase).replace(' ', '_')}{processes.suffix()}.safetensors"
    with contextlib.suppress(OSError):
        for other in directory.glob(f"*{processes.suffix()}.safetensors"):
            if other.name != name:
                other.unlink()
    autocast = torch.is_autocast_enabled(images.device.type)
    task, options = images.task, images.task.options
    facts = (phase, task.preprocessing, options.augment, options.seed, options.images_a_step)
    facts = (*facts, images.layout, images.device.type, autocast)
    key = secrets.token_hex() if is_sharded(net) else key_of(net, *facts)
    counts: dict[Split, int] = {"train": images.num_views * len(task.train), "val": len(task.val)}
    return Shelf(directory / name, key=key, counts=counts)


def feature_feed(net: nn.Module, head: nn.Module, images: ImageFeed, shelf: Shelf, tick: Tick) -> FeatureFeed | str:
    """Compute the head's input for every training and validation image; the reason where that is not exact.

    The net must be in the mode it trains in, with nothing but `head` learning.
    """
    if (stored := shelf.stored()) is not None:
        return FeatureFeed(head, images, stored, was_stored=True)
    with torch.no_grad(), captured(head) as taken:
        for split, logits_NK in every_row(images, taken, tick):
            if len(taken) != 1 or (not shelf.begun and not torch.equal(_answer(head, taken[0], images), logits_NK)):
                return "what the head gives is not what the net gives"
            if not shelf.begun and not shelf.fits(taken[0]):
                return "the disk has no room for the features"
            shelf.put(split, taken[0])
    return FeatureFeed(head, images, shelf.close())


def _answer(head: nn.Module, features: Tensor, images: ImageFeed) -> Tensor:
    """logits_NK of the head, on as many threads as it has within the net."""
    with num_threads(None if images.light_head is None else 1):
        return head(features).flatten(1)
