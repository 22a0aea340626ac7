"""How fast pixels come: torchvision's v1 PIL pipeline against rendering once to uint8 and varying whole batches, on one core.

    python scripts/bench_data.py [--rounds 5] [--only data]

Writes docs/bench/data.json and the table of docs/training.md.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from benching.document import main
from benching.loops import IMAGENET, random_pixels
from benching.turns import in_turns, row, timed
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.bundle import Preprocessing
from toolkit.data import Augment, AugmentSpec, draws_NK, render


def photographs(num: int = 16) -> list[bytes]:
    """JPEGs of 500×375 pixels with the statistics of photographs as far as a decoder cares: smooth, with some grain."""
    generator, found = np.random.default_rng(0), []
    for _ in range(num):
        smooth = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grainy = np.clip(np.asarray(smooth) + generator.normal(0, 6, (375, 500, 3)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(grainy).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


class Opened(Dataset[Any]):
    """Images through a v1 transform, one by one."""

    def __init__(self, sources: Sequence[Any], transform: Any) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source = self.sources[index]
        image = Image.open(io.BytesIO(source)).convert("RGB") if isinstance(source, bytes) else source
        return self.transform(image), 0


def files(rounds: int) -> list[dict[str, Any]]:
    """Pixels a core: torchvision's v1 PIL pipeline against rendering once to uint8 and varying whole batches."""
    T = torchvision.transforms
    photos, spec = photographs(), Preprocessing(size_px=(224, 224), resize="crop", crop_fraction=0.875, **IMAGENET)
    normal = [T.ToTensor(), T.Normalize(*IMAGENET.values())]
    v1_eval = T.Compose([T.Resize(256), T.CenterCrop(224), *normal])
    v1_train = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), *normal])
    augment, indices_N = Augment(AugmentSpec(brightness=0, contrast=0)), torch.arange(len(photos))
    rendered_NHWC = torch.from_numpy(np.stack([render(photo, spec) for photo in photos]))
    stored_NCHW = rendered_NHWC.permute(0, 3, 1, 2).contiguous()

    def first(varied: bool) -> Tensor:
        images_NCHW = torch.from_numpy(np.stack([render(photo, spec).transpose(2, 0, 1) for photo in photos]))
        return augment(images_NCHW, draws_NK=draws_NK(indices_N, seed=0, epoch=0)) if varied else images_NCHW

    def later(varied: bool) -> Tensor:
        images_NCHW = stored_NCHW[indices_N]
        return augment(images_NCHW, draws_NK=draws_NK(indices_N, seed=0, epoch=1)) if varied else images_NCHW

    def v1(transform: Any) -> Tensor:
        return torch.stack([image for image, _ in (Opened(photos, transform)[i] for i in range(len(photos)))])

    works: dict[str, Callable[[], object]] = {
        "v1 eval": lambda: v1(v1_eval), "v1 train": lambda: v1(v1_train),
        "eval": lambda: first(False), "train": lambda: first(True),
        "eval again": lambda: later(False), "train again": lambda: later(True),
        "decode": lambda: [Image.open(io.BytesIO(photo)).convert("RGB").load() for photo in photos],
    }  # fmt: skip
    times = in_turns({name: lambda work=work: timed(work) for name, work in works.items()}, rounds=4 * rounds)
    facts = {"per": len(photos), "unit": "images/s"}
    ten = {name: [a + 9 * b for a, b in zip(times[name], times[f"{name} again"], strict=True)] for name in ("eval", "train")}
    ten |= {f"v1 {name}": [10 * a for a in times[f"v1 {name}"]] for name in ("eval", "train")}
    tenfold = {"per": 10 * len(photos), "unit": "images/s"}
    return [
        row(
            "500×375 JPEG, PIL's decoder alone, against v1 eval (the most to gain)",
            times,
            "decode",
            "v1 eval",
            None,
            **facts,
        ),
        row("500×375 JPEG, first epoch: decode + eval, against v1", times, "eval", "v1 eval", 2.6, **facts),
        row("500×375 JPEG, first epoch: decode + train, against v1", times, "train", "v1 train", 2.0, **facts),
        row("500×375 JPEG, 10 epochs, decoded once: eval, against v1", ten, "eval", "v1 eval", 2.6, **tenfold),
        row("500×375 JPEG, 10 epochs, decoded once: train, against v1", ten, "train", "v1 train", 2.0, **tenfold),
    ]


def resident(rounds: int) -> dict[str, Any]:
    """A resident uint8 set with a crop and a flip of its own for each sample, against PIL images in a DataLoader."""
    T = torchvision.transforms
    pixels, spec = random_pixels(256, 96), AugmentSpec(brightness=0, contrast=0)
    crop = T.RandomCrop(96, padding=7, padding_mode="reflect")
    transform = T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET.values())])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels.images_NCHW]
    loader, augment = DataLoader(Opened(pictures, transform), batch_size=64), Augment(spec)

    def ours() -> None:
        for indices_N in torch.randperm(len(pixels)).split(64):
            augment(pixels.read(indices_N), draws_NK=draws_NK(indices_N, seed=0, epoch=0))

    times = in_turns({"ours": lambda: timed(ours), "loader": lambda: timed(lambda: list(loader))}, rounds=4 * rounds)
    return row(
        "resident uint8, 96 px, crop + flip a sample, against PIL + DataLoader",
        times,
        "ours",
        "loader",
        8.0,
        per=256,
        unit="images/s",
    )


def one_core(rounds: int) -> list[dict[str, Any]]:
    """Both, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*files(rounds), resident(rounds)]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main("data", {"data": one_core}, page="training.md", purpose=__doc__)
