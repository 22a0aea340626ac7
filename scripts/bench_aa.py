"""How often does the benchmark call a program faster or slower than itself? `python scripts/bench_aa.py [repetitions]`.

Each repetition compares one exported bundle with itself, in onnxruntime and in torch, as `toolkit benchmark` does. Prints the
ratios, and the shares of runs whose interval leaves out 1 and whose verdict is not `no difference`.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from toolkit.backends import write_onnx
from toolkit.bundle import ONNX, Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.checks.benchmark import benchmark
from toolkit.checks.benchmark_plan import BenchmarkPlan
from toolkit.data.shapes import shapes
from toolkit.models import Deployed, build, pixel_contract

SIZE_PX = 64
PREPROCESSING = Preprocessing((SIZE_PX, SIZE_PX))
LABELS = ("circle", "square", "triangle")
MODELS = {"onnxruntime": "torchvision/mobilenet_v3_small", "eager": "torchvision/resnet18"}


def exported(store: Store, key: str) -> Bundle:
    """The architecture with random weights, as an exported bundle."""
    torch.manual_seed(0)
    architecture = Architecture(key, {"num_classes": len(LABELS)})
    net = build(architecture).eval()
    manifest = Manifest(architecture, LABELS, PREPROCESSING, pixel_contract(PREPROCESSING, len(LABELS)), lineage("adopt"))
    parent = store.add(manifest, weights=net.state_dict())
    graph = store.root / "model.onnx"
    write_onnx(Deployed(net, PREPROCESSING), graph, preprocessing=PREPROCESSING, labels=LABELS, metadata={})
    manifest = replace(manifest, lineage=lineage("export", parents=[parent.digest]))
    return store.add(manifest, weights=net.state_dict(), files={ONNX: graph})


def main(repetitions: int) -> None:
    """Compare, repeat, count."""
    images = shapes(40, size_px=SIZE_PX, noise=20.0)
    with tempfile.TemporaryDirectory() as folder:
        for runner, key in MODELS.items():
            bundle = exported(Store(Path(folder, runner)), key)
            plan = BenchmarkPlan(runners=[runner, runner], batch=[1])
            found, alarms = [], 0
            for seed in range(repetitions):
                report = benchmark(bundle, images, plan=plan, seed=seed)
                (ratio,) = [m for m in report.measurements if m.name.startswith("latency_ratio")]
                (verdict,) = report.details["comparison"]["1"].values()
                busy = ", busy machine" if any(run["contended"] for run in report.details["runs"]) else ""
                print(
                    f"{runner} {ratio.value:.3f} ({ratio.interval[0]:.3f}-{ratio.interval[1]:.3f}) {verdict}{busy}", flush=True
                )
                found.append((ratio.value, *ratio.interval))
                alarms += verdict != "no difference"
            value, low, high = np.array(found).T
            outside = int(((low > 1) | (high < 1)).sum())
            print(
                f"{key} in {runner}: {outside} of {repetitions} intervals leave out 1, {alarms} verdicts of a difference; ",
                end="",
            )
            print(f"ratios {value.min():.3f} to {value.max():.3f}, half-width {np.median(high - low) / 2:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
