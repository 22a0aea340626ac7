"""Export every torchvision classification architecture and check parity: no clean export may fail.

Each architecture is built with random weights and the BatchNorm statistics of real photographs, exported and checked in a
process of its own, at the smallest size it takes, because what is tested is every operator and not every pixel. Results are
kept one by one in docs/parity_sweep.json, so that a stopped sweep goes on where it was; docs/parity_sweep.md is the table.

    python scripts/bench_parity_sweep.py [--only resnet18 vit_b_16] [--again]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "docs" / "parity_sweep.json", ROOT / "docs" / "parity_sweep.md"
SIZES_PX = {"inception_v3": 96, "vit_h_14": 70, "maxvit_t": 224}
SMALLEST_PX = 64
NUM_IMAGES = 16
BYTES_PER_PARAMETER = 36  # float32 and float64 modules, the graph, its file's bytes and the session


def main() -> int:
    """Run what is missing, smallest first; exit 1 when a clean export did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="architectures to run (default: all)")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return 0
    done: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, num_parameters in architectures():
        if (arguments.only and name not in arguments.only) or (name in done and not arguments.again):
            continue
        while available_bytes() < num_parameters * BYTES_PER_PARAMETER + 2**30:
            print(f"{name}: waiting for memory", flush=True)
            time.sleep(60)
        command = [sys.executable, __file__, "--one", name]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if child.returncode:
            print(f"{name}: {child.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        done[name] = json.loads(child.stdout.splitlines()[-1])
        RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        TABLE.write_text(table(done))
        print(name, {key: done[name][key] for key in ("verdict", "worst", "export_cpu_s", "parity_cpu_s")}, flush=True)
    return int(any(result["verdict"] != "pass" for result in done.values()))


def architectures() -> list[tuple[str, int]]:
    """Every name with its number of parameters, smallest first."""
    import torchvision.models as models

    published = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in models.list_models(module=models)}
    return sorted(published.items(), key=lambda entry: (entry[1], entry[0]))


def measure(name: str) -> dict[str, Any]:
    """Build, export and check one architecture; seconds are this process's CPU seconds, `seconds` wall seconds by phase."""
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.checks.real import calibrated, photos_NCHW
    from toolkit.backends import write_onnx
    from toolkit.bundle import Preprocessing
    from toolkit.checks.parity import parity

    torch.set_num_threads(1)
    size_px = SIZES_PX.get(name, SMALLEST_PX)
    deployed = calibrated(f"torchvision/{name}", size_px)
    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder) / "model.onnx", time.process_time()
        labels = [str(label) for label in range(1000)]
        facts = write_onnx(deployed, path, preprocessing=Preprocessing((size_px, size_px)), labels=labels)
        exported = time.process_time()
        report = parity(deployed, path, photos_NCHW(size_px)[:NUM_IMAGES], subject="0" * 64)
    return {
        "size_px": size_px,
        "num_parameters": sum(parameter.numel() for parameter in deployed.parameters()),
        "num_nodes": facts.num_nodes,
        "method": facts.method,
        "seconds": dict(facts.seconds),
        "export_cpu_s": exported - started,
        "parity_cpu_s": time.process_time() - exported,
        "median": report.value("error_ratio.median"),
        "worst": report.value("error_ratio.max"),
        "float32_share": report.value("float32_share"),
        "ties_top5": report.value("ties.top5"),
        "verdict": report.verdict,
        "broken": [m.name for m in report.measurements if m.limit is not None and m.passed is not True],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "environment": {key: report.environment[key] for key in ("processor", "num_cpus", "python", "packages")},
    }


def table(done: dict[str, Any]) -> str:
    """The results as Markdown, by name."""
    where = next(iter(done.values()))["environment"]
    packages = ", ".join(f"{name} {where['packages'][name]}" for name in ("torch", "torchvision", "onnx", "onnxruntime"))
    verdicts = [result["verdict"] for result in done.values()]
    lines = [
        (
            f"{len(done)} architectures: {verdicts.count('pass')} pass, {verdicts.count('undecided')} undecided, "
            f"{verdicts.count('fail')} fail. {where['processor']}, {where['num_cpus']} cores (shared), {packages}."
        ),
        "",
        (
            "| architecture | px | parameters (M) | nodes | way | trace (s) | write (s) | verify (s) | export (CPU s) "
            "| parity (CPU s) | error, median (floors) | error, worst (floors) | verdict |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in sorted(done.items()):
        seconds = result["seconds"]
        trace = seconds.get("fast_trace", 0) + seconds.get("trace", 0)
        lines.append(
            f"| {name} | {result['size_px']} | {result['num_parameters'] / 1e6:.1f} | {result['num_nodes']} "
            f"| {result['method']} | {trace:.1f} | {seconds['write']:.1f} | {seconds['verify']:.1f} "
            f"| {result['export_cpu_s']:.1f} | {result['parity_cpu_s']:.1f} | {result['median']:.2f} "
            f"| {result['worst']:.2f} | {result['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def available_bytes() -> int:
    """The memory the system can still give; unlimited where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2**62
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    sys.exit(main())
