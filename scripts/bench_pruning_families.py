"""Prune one network of every torchvision classification family, and write the support table into docs/pruning.md.

Each family, in a process of its own: prune to half of the MACs, one training step, write a bundle, restore it, export parent
and child, compare the graph with torch, time both in turns. Weights are random (with BatchNorm statistics of their own), so
the table speaks of structure and speed, not of accuracy. Results are kept line by line in
docs/bench/families.jsonl: an interrupted sweep goes on.

    python scripts/bench_pruning_families.py [--only resnet18,vit_b_16] [--px 224]
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benching.document import DOCS, into_page
from benching.plots import speedups

FAMILIES = {
    "AlexNet": "alexnet",
    "VGG": "vgg11",
    "VGG + BN": "vgg11_bn",
    "ResNet": "resnet18",
    "ResNeXt": "resnext50_32x4d",
    "Wide-ResNet": "wide_resnet50_2",
    "SqueezeNet": "squeezenet1_1",
    "DenseNet": "densenet121",
    "GoogLeNet": "googlenet",
    "Inception-v3": "inception_v3",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3_small",
    "MNASNet": "mnasnet0_5",
    "ShuffleNetV2": "shufflenet_v2_x1_0",
    "EfficientNet": "efficientnet_b0",
    "EfficientNetV2": "efficientnet_v2_s",
    "RegNet": "regnet_y_400mf",
    "ConvNeXt": "convnext_tiny",
    "ViT": "vit_b_16",
    "Swin": "swin_t",
    "SwinV2": "swin_v2_t",
    "MaxViT": "maxvit_t",
}
CLASSES = 10
HEAD = re.compile(r"(fc|head|classifier(\.\d+)?)\. ")


def measure(name: str, px: int) -> dict[str, Any]:
    """Everything the table says of one network; run in a fresh process."""
    import torch
    import torchvision

    from toolkit.bundle import Architecture, environment
    from toolkit.models import build
    from toolkit.pruning import CRITERIA, Budget, PruneOptions, count_macs, count_parameters, prune_net

    started, notes = time.perf_counter(), _Notes()
    logging.getLogger("toolkit.pruning").addHandler(notes)
    logging.getLogger("toolkit.pruning").setLevel(logging.INFO)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = False
    architecture = Architecture(f"torchvision/{name}", kwargs)
    parent, net = build(architecture), build(architecture)
    settle(parent, px)
    net.load_state_dict(parent.state_dict())
    image_NCHW = torch.randn(1, 3, px, px)
    options, budget = PruneOptions(round_to=16), Budget("macs", 0.5)
    plan = prune_net(net, image_NCHW, criterion=CRITERIA["magnitude"](), budget=budget, batches=[], options=options)
    pruned_s = time.perf_counter() - started
    macs = count_macs(net, image_NCHW) / count_macs(parent, image_NCHW)
    parameters = count_parameters(net) / count_parameters(parent)
    learned = _one_step(net, px)
    proof = _proof(architecture, plan, parent, net, image_NCHW)
    return {
        "name": name,
        "torchvision": torchvision.__version__,
        "px": px,
        "macs": macs,
        "parameters": parameters,
        "learned": learned,
        **proof,
        "prune_s": pruned_s,
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time(),
        "unpruned": notes.texts,
        "environment": environment(),
    }


def _proof(architecture: Any, plan: Any, parent: Any, net: Any, image_NCHW: Any) -> dict[str, Any]:
    """Whether the pruned net comes back from its bundle and through ONNX, and how fast it is beside its parent."""
    import numpy as np
    import torch

    from toolkit.backends import EagerRunner, OnnxRunner, measure_latency, write_onnx
    from toolkit.bundle import Manifest, Preprocessing, Store, lineage
    from toolkit.models import Deployed, pixel_contract, restore
    from toolkit.pruning.cost import evaluating

    px = image_NCHW.shape[-1]
    preprocessing, labels = Preprocessing(size_px=(px, px)), tuple(str(k) for k in range(CLASSES))
    contract = pixel_contract(preprocessing, CLASSES)
    manifest = Manifest(architecture, labels, preprocessing, contract, lineage("prune"), plan=plan)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Store(folder).add(manifest, weights=net.state_dict())
        again = restore(bundle)
        with evaluating(net), evaluating(again):
            reloaded = torch.equal(net(image_NCHW), again(image_NCHW))
        graphs = {}
        for side, module in (("parent", parent), ("child", again)):
            path = Path(folder) / side / "model.onnx"
            write_onnx(Deployed(module.eval(), preprocessing), path, preprocessing=preprocessing, labels=labels)
            graphs[side] = OnnxRunner(path, threads=1)
        pixels_NCHW = np.random.default_rng(0).uniform(0, 255, (2, 3, px, px)).astype(np.float32)
        expected_NK = EagerRunner(Deployed(again.eval(), preprocessing), threads=1)(pixels_NCHW)
        error = np.abs(graphs["child"](pixels_NCHW) - expected_NK).max() / max(np.abs(expected_NK).max(), 1e-30)
        timed = measure_latency(graphs, pixels_NCHW[:1], rounds=40, most_blocks=3)
    fast = {side: float(np.quantile(times_ms, 0.25)) for side, times_ms in timed.items()}
    return {
        "reloaded": reloaded,
        "onnx_error": float(error),
        "parent_ms": fast["parent"],
        "child_ms": fast["child"],
        "speedup": fast["parent"] / fast["child"],
        "contended": timed.contended,
    }


class _Notes(logging.Handler):
    """Keeps what pruning says of layers it leaves alone."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def settle(net: Any, px: int) -> None:
    """Statistics and heads that pass ordinary values, without which a deep random net gives zeros."""
    import torch

    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not bool(parameter.any()):
                parameter.normal_(std=0.02)
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train()
                module.momentum = None
            else:
                module.training = False
        net(torch.randn(4, 3, px, px))
    net.eval()


def _one_step(net: Any, px: int) -> bool:
    """One optimiser step on noise; whether the loss and every weight afterwards were finite numbers."""
    import torch
    from torch.nn import functional as F

    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    out = net(torch.randn(2, 3, px, px))
    loss = F.cross_entropy(out if isinstance(out, torch.Tensor) else out[0], torch.tensor([0, 1]))
    loss.backward()
    optimiser.step()
    net.eval()
    return bool(torch.isfinite(loss)) and all(bool(torch.isfinite(p).all()) for p in net.parameters())


def table(results: dict[str, dict[str, Any]]) -> str:
    """The support table in Markdown, with the machine."""
    lines = [
        "| family | network | MACs | parameters | trains | reloads | ONNX error | latency, ms | speed-up | s | left whole |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family, name in FAMILIES.items():
        one = results.get(name)
        if one is None:
            continue
        if "failed" in one:
            lines.append(f"| {family} | `{name}` | failed: {one['failed']} | | | | | | | | |")
            continue
        left = _left(one["unpruned"])
        speed = f"{one['speedup']:.2f}×{' (busy)' if one['contended'] else ''}"
        lines.append(
            f"| {family} | `{name}` | {100 * one['macs']:.1f}% | {100 * one['parameters']:.1f}% | {_yes(one['learned'])} | "
            f"{_yes(one['reloaded'])} | {one['onnx_error']:.0e} | {one['parent_ms']:.2f} → {one['child_ms']:.2f} | {speed} | "
            f"{one['cpu_s']:.0f} | {left} |"
        )
    done = [one for one in results.values() if "failed" not in one]
    where = done[0]["environment"] if done else {}
    packages = where.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "onnxruntime") if name in packages)
    lines += ["", f"{len(done)} of {len(FAMILIES)} families. {where.get('processor', '')}, {versions}."]
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def _left(texts: list[str]) -> str:
    """The layers that stay as they are, from pruning's own words, shortened for a cell."""
    kept = [text.split(": ", 1)[1] for text in dict.fromkeys(texts) if text.startswith("These layers")]
    kept = [text for text in kept if not HEAD.match(text)]  # a head alone is no news
    return "; ".join(text.replace("|", "/") for text in kept) or ""


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(FAMILIES.values()))
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--docs", type=Path, default=DOCS, help="the directory of the pages")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.px)))
        return
    kept = arguments.docs / "bench" / "families.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.exists() else []
    results = {one["name"]: one for one in map(json.loads, lines)}
    for name in arguments.only.split(","):
        if name in results and "failed" not in results[name]:
            continue
        command = [sys.executable, __file__, "--one", name, "--px", str(arguments.px)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        results[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"name": name, "failed": last}
        print(name, {k: v for k, v in results[name].items() if k not in ("environment", "unpruned")}, flush=True)
        with kept.open("a") as stream:
            stream.write(json.dumps(results[name]) + "\n")
    done = {family: results[name]["speedup"] for family, name in FAMILIES.items() if "speedup" in results.get(name, {})}
    speedups(done, kept.with_suffix(".png"), wanted=2)
    picture = "![how many times as fast each family became](bench/families.png)"
    into_page(arguments.docs / "pruning.md", "families", f"{table(results)}\n\n{picture}")


if __name__ == "__main__":
    main()
