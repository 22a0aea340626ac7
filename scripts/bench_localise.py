"""Time how long finding one fault takes: the largest weight of one layer of ResNet-18 and of ViT-B/16 a half larger, at 224 px.

Written to docs/localise_bench.json. Exit 1 where the fault is not found, or not within the budget: 30 s and 3 minutes, counted
in CPU seconds, because the machine may be shared.

    python scripts/bench_localise.py
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RECORDED = ("processor", "num_cpus", "python", "packages")
RESULTS = ROOT / "docs" / "localise_bench.json"
SIZE_PX = 224
CASES = {
    "torchvision/resnet18": ("net.layer3.0.conv2", 30),
    "torchvision/vit_b_16": ("net.encoder.layers.encoder_layer_6.mlp.0", 180),
}


def main() -> int:
    """Export, plant, localise; print and keep what was found."""
    import torch

    from toolkit.bundle import environment

    torch.set_num_threads(1)
    results: dict[str, Any] = {key: measured(key, layer) for key, (layer, _) in CASES.items()}
    RESULTS.write_text(
        json.dumps({"models": results, "environment": {key: environment()[key] for key in RECORDED}}, indent=1, sort_keys=True)
        + "\n"
    )
    return int(any(not found["named"] or found["cpu_s"] > CASES[key][1] for key, found in results.items()))


def measured(key: str, layer: str) -> dict[str, Any]:
    """Seconds to localise the fault, all values in one session."""
    from tests.checks.faults import scaled_in_graph
    from tests.checks.real import calibrated, photos_NCHW
    from toolkit.backends import write_onnx
    from toolkit.bundle import Preprocessing
    from toolkit.checks.parity_localise import localise

    deployed = calibrated(key, SIZE_PX, num_images=32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        labels = [str(label) for label in range(1000)]
        write_onnx(deployed, path, preprocessing=Preprocessing((SIZE_PX, SIZE_PX)), labels=labels)
        scaled_in_graph(path, deployed, layer, path)
        started, started_cpu = time.perf_counter(), time.process_time()
        found = localise(deployed, path, photos_NCHW(SIZE_PX, 32)[:4])
        spent = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - started_cpu}
    culprit = found.culprit
    named = culprit is not None and layer in (*culprit.fused, culprit.module)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"sentence": found.sentence(), "num_values": len(found.places), "named": named, "peak_mib": peak_mib, **spent}
    print(key, result, flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
