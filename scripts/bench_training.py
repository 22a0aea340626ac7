"""How fast training is: ours against a hand-written PyTorch loop and against Lightning out of the box, in turns.

    python scripts/bench_training.py [--rounds 5] [--only loop,resnet,memory,probe,stage,optimiser,elpv]

The hand-written loop runs twice (A/A): what its two runs differ by is the noise. Writes docs/bench/training.json and a table of
docs/training.md.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torchvision
from benching.document import main
from benching.loops import IMAGENET, by_hand, out_of_the_box, random_pixels, trained
from benching.to_score import curves, seconds_to
from benching.turns import beyond, in_turns, row, timed
from torch import Tensor, nn

from toolkit.bundle import Preprocessing
from toolkit.data import load_pixels
from toolkit.data.digits import digits
from toolkit.training import TrainerSpec
from toolkit.training.allocator import kept_memory
from toolkit.training.average import Average

DIGITS = Preprocessing(size_px=(8, 8), colour="L", mean=(0.5,), std=(0.5,))


def loop(rounds: int) -> list[dict[str, Any]]:
    """Steps a second on the tiny digits model, where the loop is all there is."""
    train, val = (load_pixels(digits().split(split), DIGITS) for split in ("train", "val"))
    few, many, batch = 2, 22, 64
    steps = (many - few) * -(-len(train) // batch)

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def ours(cached: bool) -> Callable[[int], None]:
        spec = TrainerSpec(accelerator="cpu", cache_features=cached, checkpoint_every_s=1e6)
        return lambda epochs: trained(net(), train, val, DIGITS, epochs=epochs, trainer=spec, depth=0, batch=batch)

    def hand(epochs: int) -> None:
        by_hand(net(), train, DIGITS, epochs=epochs, batch=batch, layout=torch.contiguous_format)

    def lightning(epochs: int) -> None:
        out_of_the_box(net(), train, val, DIGITS, epochs=epochs, batch=batch)

    works: dict[str, Callable[[int], None]] = {
        "hand": hand, "again": hand, "lightning": lightning, "ours": ours(False), "cached": ours(True),
    }  # fmt: skip
    times = in_turns({name: partial(beyond, work, few, many) for name, work in works.items()}, rounds=rounds)
    facts = {"per": steps, "unit": "steps/s"}
    return [
        row("digits, linear: hand-written loop against itself (A/A)", times, "hand", "again", None, **facts),
        row("digits, linear, through the Trainer, against the hand-written loop", times, "ours", "hand", None, **facts),
        row("digits, linear, through the Trainer, against Lightning out of the box", times, "ours", "lightning", None, **facts),
        row("digits, linear, cached features, against Lightning out of the box", times, "cached", "lightning", 7.0, **facts),
    ]


def resnet(rounds: int) -> list[dict[str, Any]]:
    """Images a second on ResNet-18 at 96 px, where the loop should not show."""
    spec, train, val = Preprocessing(size_px=(96, 96), **IMAGENET), random_pixels(192, 96), random_pixels(16, 96, seed=1)
    start = torchvision.models.resnet18(num_classes=10)
    settings = TrainerSpec(accelerator="cpu", channels_last=True)

    def hand(epochs: int) -> None:
        by_hand(copy.deepcopy(start), train, spec, epochs=epochs, batch=32, layout=torch.channels_last, val=val)

    def ours(epochs: int) -> None:
        trained(copy.deepcopy(start), train, val, spec, epochs=epochs, trainer=settings, depth=-1, batch=32)

    works = {"hand": hand, "again": hand, "ours": ours}
    times = in_turns({name: partial(beyond, work, 1, 2) for name, work in works.items()}, rounds=rounds)
    facts = {"per": len(train), "unit": "images/s"}
    return [
        row("ResNet-18, 96 px: hand-written loop against itself (A/A)", times, "hand", "again", None, **facts),
        row("ResNet-18, 96 px, both validating, against the hand-written loop", times, "ours", "hand", 0.98, **facts),
    ]


def memory(rounds: int) -> list[dict[str, Any]]:
    """A step with what the last one freed kept in the process, or gone back to the system."""
    found = []
    for name, px in (("resnet18", 96), ("efficientnet_b0", 192)):
        net = getattr(torchvision.models, name)(num_classes=10).to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(net.parameters(), fused=True)
        images_NCHW = torch.randn(32, 3, px, px).to(memory_format=torch.channels_last)

        def step(net: nn.Module = net, optimiser: Any = optimiser, images_NCHW: Tensor = images_NCHW) -> None:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images_NCHW), torch.arange(32) % 10).backward()
            optimiser.step()

        def seconds(around: Callable[[], Any], step: Callable[[], None] = step) -> float:
            with around():
                step()
                return timed(lambda: [step() for _ in range(3)])

        times = in_turns({"kept": partial(seconds, kept_memory), "usual": partial(seconds, nullcontext)}, rounds=rounds)
        what = f"{name}, {px} px, a step with freed memory kept against the usual"
        found.append(row(what, times, "kept", "usual", None, per=3 * 32, unit="images/s"))
    return found


def probe(rounds: int) -> list[dict[str, Any]]:
    """A linear probe of 10 epochs on ResNet-18, features computed once or every epoch."""
    spec, train, val = Preprocessing(size_px=(96, 96), **IMAGENET), random_pixels(768, 96), random_pixels(32, 96, seed=1)
    start = torchvision.models.resnet18(num_classes=10)
    heads: dict[bool, Tensor] = {}

    def run(cached: bool) -> float:
        net, settings = copy.deepcopy(start), TrainerSpec(accelerator="cpu", cache_features=cached)
        seconds = timed(lambda: trained(net, train, val, spec, epochs=10, trainer=settings, depth=0, batch=32))
        heads[cached] = net.fc.weight.detach().clone()
        return seconds

    times = in_turns({"cached": lambda: run(True), "uncached": lambda: run(False)}, rounds=max(1, rounds // 2))
    if not torch.equal(heads[True], heads[False]):
        raise SystemExit("the cached head differs from the uncached one")
    facts = {"per": 10 * len(train), "unit": "images/s"}
    return [
        row(
            "linear probe, 10 epochs, cached features against none (heads equal bit for bit)",
            times,
            "cached",
            "uncached",
            9.0,
            **facts,
        )
    ]


def last_stage(rounds: int) -> list[dict[str, Any]]:
    """The last stage of ResNet-18 for 5 epochs, what the frozen rest gives computed once or every epoch."""
    spec, train, val = Preprocessing(size_px=(96, 96), **IMAGENET), random_pixels(384, 96), random_pixels(32, 96, seed=1)
    start = torchvision.models.resnet18(num_classes=10)
    nets: dict[bool, dict[str, Tensor]] = {}

    def run(kept: bool) -> float:
        net, settings = copy.deepcopy(start), TrainerSpec(accelerator="cpu", cache_features=kept, channels_last=True)
        seconds = timed(lambda: trained(net, train, val, spec, epochs=5, trainer=settings, depth=1, batch=32))
        nets[kept] = net.state_dict()
        return seconds

    times = in_turns({"kept": lambda: run(True), "anew": lambda: run(False)}, rounds=max(1, rounds // 2))
    if not all(torch.equal(tensor, nets[False][name]) for name, tensor in nets[True].items()):
        raise SystemExit("the weights differ from those of the long way")
    what = "last stage, 5 epochs, what it is given kept against none (weights equal bit for bit)"
    return [row(what, times, "kept", "anew", None, per=5 * len(train), unit="images/s")]


def optimiser(rounds: int) -> list[dict[str, Any]]:
    """One update of weights and average, gradients given: AdamW and EMA as the frameworks do them by default."""
    found = []
    for name in ("resnet18", "efficientnet_b0"):
        nets = [getattr(torchvision.models, name)() for _ in range(2)]
        for net in nets:
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
        plain, fused = (
            torch.optim.AdamW(nets[0].parameters(), lr=1e-3, foreach=False),
            torch.optim.AdamW(nets[1].parameters(), lr=1e-3, fused=True),
        )
        shadow = {key: tensor.clone() for key, tensor in nets[0].state_dict().items()}
        average = Average(dict(nets[1].named_parameters()), decay=0.999)

        @torch.no_grad()
        def default(plain: Any = plain, shadow: Any = shadow, net: nn.Module = nets[0]) -> None:
            plain.step()
            for key, tensor in net.state_dict().items():  # what most training scripts do
                shadow[key].copy_(0.999 * shadow[key] + (1 - 0.999) * tensor)

        def ours(fused: Any = fused, average: Average = average) -> None:
            fused.step()
            average.update()

        def repeated(work: Callable[[], None]) -> float:
            return timed(lambda: [work() for _ in range(5)])

        times = in_turns({"default": lambda: repeated(default), "ours": lambda: repeated(ours)}, rounds=3 * rounds)
        found.append(
            row(
                f"AdamW + EMA, {name}, against AdamW and a state-dict average",
                times,
                "ours",
                "default",
                6.0,
                per=5,
                unit="updates/s",
            )
        )
    return found


def end_to_end(rounds: int) -> list[dict[str, Any]]:
    """Seconds from nothing to a validation score on ELPV; the score is what both reach in that round."""
    contenders, times, scores = curves(), {"ours": [], "lightning": []}, []
    for number in range(max(1, rounds // 2)):
        found = {name: contenders[name]() for name in sorted(contenders, reverse=bool(number % 2))}
        score = min(max(reached for _, reached in curve) for curve in found.values())
        scores.append(score)
        for name, curve in found.items():
            times[name].append(seconds_to(curve, score))
    what = (
        f"ELPV, EfficientNet-Lite0 at 64 px, runs to {min(scores):.0%} … {max(scores):.0%} balanced accuracy, against Lightning"
    )
    return [row(f"{what} out of the box", times, "ours", "lightning", None, per=60, unit="runs/min")]


SECTIONS = {
    "loop": loop,
    "resnet": resnet,
    "memory": memory,
    "probe": probe,
    "stage": last_stage,
    "optimiser": optimiser,
    "elpv": end_to_end,
}

if __name__ == "__main__":
    main("training", SECTIONS, page="training.md", purpose=__doc__)
