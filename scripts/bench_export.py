"""Time the toolkit's export against `torch.onnx.export(dynamo=True)` with a dynamic batch; both are held to parity.

CPU seconds of this process, because the machine may be shared; the rounds are interleaved, and each way is first in turn.
Written to docs/export_bench.json and docs/export_bench.md. Exit 1 where the toolkit's way is slower or a graph does not pass
parity.

    python scripts/bench_export.py [--rounds 3]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RECORDED = ("processor", "num_cpus", "python", "packages")
RESULTS, TABLE = ROOT / "docs" / "export_bench.json", ROOT / "docs" / "export_bench.md"
MODELS = ("mobilenet_v3_small", "resnet18", "efficientnet_b0", "resnet50")
SIZE_PX, NUM_IMAGES = 64, 8
LABELS = [str(label) for label in range(1000)]


def main() -> int:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    from tests.checks.real import calibrated
    from toolkit.bundle import environment

    torch.set_num_threads(1)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        warm = calibrated("torchvision/squeezenet1_1", SIZE_PX)
        for write in (by_toolkit, by_torch):
            write(warm, Path(folder) / "warm.onnx")
        for name in MODELS:
            measured[name] = compared(calibrated(f"torchvision/{name}", SIZE_PX), Path(folder), rounds)
            print(name, measured[name], flush=True)
    results = {"models": measured, "rounds": rounds, "environment": {key: environment()[key] for key in RECORDED}}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(table(results))
    print(TABLE.read_text())
    return int(any(m["ratio"] < 1 or set(m["verdicts"].values()) != {"pass"} for m in measured.values()))


def by_toolkit(deployed: Any, path: Path) -> dict[str, Any]:
    """The toolkit's export: short way where it holds, described, verified at unseen batches."""
    from toolkit.backends import write_onnx
    from toolkit.bundle import Preprocessing

    facts = write_onnx(deployed, path, preprocessing=Preprocessing((SIZE_PX, SIZE_PX)), labels=LABELS)
    return {"method": facts.method, "phases": dict(facts.seconds)}


def by_torch(deployed: Any, path: Path) -> dict[str, Any]:
    """What one types: the exporter's default way with a dynamic batch, saved, and nothing verified."""
    from toolkit.backends.write import quiet

    example, shapes = (torch.zeros(2, 3, SIZE_PX, SIZE_PX),), ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    with quiet():
        program = torch.onnx.export(deployed, example, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        assert program is not None
        program.save(str(path))
    return {}


WAYS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {"toolkit": by_toolkit, "torch": by_torch}


def compared(deployed: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of both ways in every round, their ratio, and the parity of both graphs."""
    from tests.checks.real import photos_NCHW
    from toolkit.checks.parity import parity

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    facts: dict[str, Any] = {}
    for number in range(rounds):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            started = time.process_time()
            facts |= WAYS[way](deployed, folder / f"{way}.onnx")
            seconds[way].append(time.process_time() - started)
    reports = {
        way: parity(deployed, folder / f"{way}.onnx", photos_NCHW(SIZE_PX)[:NUM_IMAGES], subject="0" * 64) for way in WAYS
    }
    ratios = [slow / fast for slow, fast in zip(seconds["torch"], seconds["toolkit"], strict=True)]
    return {
        **facts,
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "verdicts": {way: report.verdict for way, report in reports.items()},
        "errors": {way: report.value("error_ratio.max") for way, report in reports.items()},
    }


def table(results: dict[str, Any]) -> str:
    """One row a model."""
    where = results["environment"]
    packages = ", ".join(f"{name} {where['packages'][name]}" for name in ("torch", "torchvision", "onnx", "onnxruntime"))
    lines = [
        (
            f"CPU seconds, median of {results['rounds']} interleaved rounds, {SIZE_PX} px; the toolkit's include writing and "
            f"verifying the graph. {where['processor']}, {where['num_cpus']} cores (shared), {packages}."
        ),
        "",
        "| model | way | toolkit | torch, dynamic batch | times faster (range) | error, toolkit | error, torch (floors) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results["models"].items():
        fast, slow = (statistics.median(found["seconds"][way]) for way in ("toolkit", "torch"))
        lines.append(
            f"| {name} | {found['method']} | {fast:.1f} | {slow:.1f} | {found['ratio']:.1f} "
            f"({min(found['ratios']):.1f} … {max(found['ratios']):.1f}) | {found['errors']['toolkit']:.2f} "
            f"| {found['errors']['torch']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
