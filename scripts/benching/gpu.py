"""Training on a GPU: ResNet-50 and ViT-B/16 at 224 px in bfloat16, against a hand-written compiled loop.

    make bench-gpu

Writes docs/bench/gpu.json and the table of docs/training.md.
"""

import copy
from functools import partial
from typing import Any

import torch
import torchvision
from benching.document import main
from benching.loops import IMAGENET, by_hand, random_pixels, trained
from benching.turns import beyond, in_turns, row

from toolkit.bundle import Preprocessing
from toolkit.training import TrainerSpec

ROOFLINES = {"resnet50": 19_200, "vit_b_16": 4_960}  # images/s on an H100 with fused traffic (790 TFLOP/s, 3.0 TB/s)
SPEC = Preprocessing(size_px=(224, 224), **IMAGENET)


def against_hand(name: str, *, num: int, batch: int, rounds: int) -> dict[str, Any]:
    """Images a second of `name` on `num` resident images, three epochs beyond the first."""
    train, val = random_pixels(num, 224), random_pixels(batch, 224, seed=1)
    start = getattr(torchvision.models, name)(num_classes=10)
    settings = TrainerSpec(accelerator="gpu", precision="bf16-mixed", channels_last=True, compile=True)
    on_gpu: dict[str, Any] = {"layout": torch.channels_last, "device": "cuda", "dtype": torch.bfloat16}

    def hand(epochs: int) -> None:
        net: Any = torch.compile(copy.deepcopy(start).to("cuda"))
        by_hand(net, train, SPEC, epochs=epochs, batch=batch, **on_gpu)

    def ours(epochs: int) -> None:
        trained(copy.deepcopy(start), train, val, SPEC, epochs=epochs, trainer=settings, depth=-1, batch=batch)

    works = {"hand": hand, "ours": ours}
    times = in_turns({key: partial(beyond, work, 1, 4) for key, work in works.items()}, rounds=rounds)
    what = f"{name}, 224 px, bf16, compiled, against a hand-written loop (H100 roofline {ROOFLINES[name]:,} images/s)"
    return row(what, times, "ours", "hand", None, per=3 * num, unit="images/s")


def gpu(rounds: int) -> list[dict[str, Any]]:
    """Both families: one bound by memory traffic, one by arithmetic."""
    return [
        against_hand("resnet50", num=8192, batch=256, rounds=rounds),
        against_hand("vit_b_16", num=4096, batch=128, rounds=rounds),
    ]


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: make bench runs the benchmarks of the CPU")
    main("gpu", {"gpu": gpu}, page="training.md", purpose=__doc__)
