"""Compare the parity check with what one would run instead, on clean exports and on planted faults.

Five architectures with the BatchNorm statistics of real photographs, each exported once: clean on several batches, and
with each fault of tests/checks/faults.py. Every rule sees the same logits of torch and onnxruntime. Written to
docs/parity_bench.json and docs/parity_bench.md.

    python scripts/bench_parity.py

The rules: torch's `torch.onnx.export(..., verify=True)` warns from 5e-3 absolute or 1e-1 relative; Polygraphy's `run` has
atol = rtol = 1e-5 (its own comparator where it is installed); Optimum's validation is `numpy.allclose` with atol = 1e-5; the
exporter's tutorial asserts rtol = 1e-3, atol = 1e-5; last, whether the top label agrees.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RECORDED = ("processor", "num_cpus", "python", "packages")
RESULTS, TABLE = ROOT / "docs" / "parity_bench.json", ROOT / "docs" / "parity_bench.md"
NUM_IMAGES, NUM_CLEAN_BATCHES = 8, 4
TOOLKIT = "toolkit parity"

Rule = Callable[[np.ndarray, np.ndarray], bool]


def torch_verify(expected_NK: np.ndarray, found_NK: np.ndarray) -> bool:
    """Whether torch's exporter would warn."""
    difference_NK = np.abs(expected_NK - found_NK)
    relative = float((difference_NK / (np.abs(expected_NK) + 1e-7)).max())
    return float(difference_NK.max()) >= 5e-3 or relative >= 1e-1


def polygraphy(expected_NK: np.ndarray, found_NK: np.ndarray) -> bool:
    """Whether Polygraphy's default comparison fails."""
    if importlib.util.find_spec("polygraphy") is None:
        return not np.allclose(found_NK, expected_NK, rtol=1e-5, atol=1e-5)
    from polygraphy.comparator import CompareFunc
    from polygraphy.comparator.struct import IterationResult
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    results = CompareFunc.simple()(IterationResult({"logits": found_NK}), IterationResult({"logits": expected_NK}))
    return not all(bool(result) for result in results.values())


RULES: dict[str, Rule] = {
    "`torch.onnx.export(verify=True)`: 5e-3, 1e-1": torch_verify,
    "Polygraphy `run`: atol = rtol = 1e-5": polygraphy,
    "Optimum: `allclose`, atol 1e-5": lambda expected, found: not np.allclose(expected, found, atol=1e-5),
    "tutorial: rtol 1e-3, atol 1e-5": lambda expected, found: not np.allclose(found, expected, rtol=1e-3, atol=1e-5),
    "top-1 agreement": lambda expected, found: bool((expected.argmax(1) != found.argmax(1)).any()),
}


def main() -> int:
    """Run all cases and write the table; exit 1 when the toolkit missed a fault, misnamed one, or raised a false alarm."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import torch

    from tests.checks.faults import ARCHITECTURES, FAULTS, SIZE_PX, Planted, exported
    from tests.checks.real import photos_NCHW
    from toolkit.bundle import environment

    torch.set_num_threads(1)
    batches = np.split(photos_NCHW(SIZE_PX)[: NUM_IMAGES * NUM_CLEAN_BATCHES], NUM_CLEAN_BATCHES)
    cases = []
    for key in ARCHITECTURES:
        export = exported(key)
        for images_NCHW in batches:
            cases.append({"model": key, "fault": "", **judged(Planted(export.deployed, export.graph, ""), images_NCHW)})
        for plant in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                planted = plant(export, Path(folder))
                cases.append({"model": key, "fault": plant.__name__, **judged(planted, batches[0])})
        print(f"{key}: done", flush=True)
    has_polygraphy = importlib.util.find_spec("polygraphy") is not None
    results = {
        "cases": cases,
        "environment": {key: environment()[key] for key in RECORDED},
        "polygraphy_installed": has_polygraphy,
    }
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(table(results))
    print(TABLE.read_text())
    return int(any(case["flagged"][TOOLKIT] != bool(case["fault"]) or not case["located"] for case in cases))


def judged(planted: Any, images_NCHW: np.ndarray) -> dict[str, Any]:
    """What every rule says of one case, whether the toolkit named the module to blame, and CPU seconds."""
    from toolkit.backends import EagerRunner, OnnxRunner
    from toolkit.checks.parity import parity

    flagged, seconds = {}, {}
    for name, rule in RULES.items():
        started = time.process_time()
        expected_NK = EagerRunner(planted.reference, threads=1)(images_NCHW)
        found_NK = OnnxRunner(planted.graph, threads=1)(images_NCHW)
        flagged[name] = rule(expected_NK, found_NK)
        seconds[name] = time.process_time() - started
    started = time.process_time()
    report = parity(planted.reference, planted.graph, images_NCHW, subject="0" * 64)
    seconds[TOOLKIT], flagged[TOOLKIT] = time.process_time() - started, report.verdict != "pass"
    culprit = report.details.get("fault", {}).get("culprit")
    blamed = (*culprit["fused"], culprit["module"]) if culprit else ()
    located = planted.culprit in blamed if planted.culprit else True
    return {"flagged": flagged, "located": located, "seconds": seconds, "ratio": report.value("error_ratio.max")}


def table(results: dict[str, Any]) -> str:
    """One row a rule: faults caught, false alarms, faults located, CPU seconds a case."""
    cases, where = results["cases"], results["environment"]
    faulty, clean = [case for case in cases if case["fault"]], [case for case in cases if not case["fault"]]
    packages = ", ".join(f"{name} {where['packages'][name]}" for name in ("torch", "torchvision", "onnx", "onnxruntime"))
    lines = [
        f"{len(faulty)} faults and {len(clean)} clean cases over {len({case['model'] for case in cases})} architectures, "
        f"{NUM_IMAGES} photographs each. {where['processor']}, {where['num_cpus']} cores (shared), {packages}"
        + ("; Polygraphy's own comparator." if results["polygraphy_installed"] else "; Polygraphy's rule, not installed."),
        "",
        "| rule | caught | false alarms | located | CPU seconds, clean | CPU seconds, faulty |",
        "|---|---|---|---|---|---|",
    ]
    for name in (*RULES, TOOLKIT):
        caught, alarms = (sum(case["flagged"][name] for case in some) for some in (faulty, clean))
        located = f"{sum(case['located'] for case in faulty)} of {len(faulty)}" if name == TOOLKIT else "–"
        spent = [statistics.median(case["seconds"][name] for case in some) for some in (clean, faulty)]
        lines.append(
            f"| {name} | {caught} of {len(faulty)} | {alarms} of {len(clean)} | {located} | {spent[0]:.2f} | {spent[1]:.2f} |"
        )
    missed = {name: sorted({c["fault"] for c in faulty if not c["flagged"][name]}) for name in RULES}
    lines += ["", *(f"- {name} missed: {', '.join(found)}." for name, found in missed.items() if found)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
