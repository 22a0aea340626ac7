"""One runner alone in a process: what `benchmark` starts for each runner and batch size, and asks over standard input.

Memory is only a runner's own where nothing else lives in the process. Its peak counts from the moment when every module is
imported and the images are loaded, so torch's and onnxruntime's own weight is left out. Linux is asked for `VmHWM`:
`ru_maxrss` outlives exec there, and a child of a large parent would report the parent's peak.

One JSON object a line goes each way: `{"do": "open" | "predict" | "warm" | "turn" | "memory"}` in, the answer or
`{"error": ...}` out. Standard output is kept for the answers; whatever a library prints goes to standard error.

Legend: N images, C channels, H height, W width.
"""

import gc
import importlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from toolkit.backends import open_runner
from toolkit.bundle import Store
from toolkit.checks.predict import predict
from toolkit.data import Pixels
from toolkit.errors import ToolkitError

STEADY = 0.05
WINDOW = 5
MOST_WARM_CALLS, MOST_WARM_S = 200, 20.0
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_bytes() -> int:
    """The most memory this process has held in RAM at once, since it was started."""
    try:
        found = PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Bench:
    """The runner under test and the questions it answers; `task` is what `benchmark_worker` wrote."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        for module in task["imports"]:
            importlib.import_module(module)
        torch.set_num_threads(task["threads"])
        self.images_NCHW = np.load(task["images"], allow_pickle=False)
        self.batch_NCHW = _repeated(self.images_NCHW, task["batch"]).astype(np.float32)
        self.bundle = Store(task["store"]).open(task["digest"])
        importlib.import_module(f"toolkit.backends.run_{task['kind']}")
        self.before_bytes = peak_bytes()

    def open(self) -> dict[str, Any]:
        """Open the runner; milliseconds until it stands and, apart, those of its first call."""
        start = time.perf_counter()
        self.runner = open_runner(self.bundle, kind=self.task["kind"], threads=self.task["threads"])
        opened = time.perf_counter()
        self.runner(self.batch_NCHW)
        return {"load_ms": 1e3 * (opened - start), "first_call_ms": 1e3 * (time.perf_counter() - opened)}

    def predict(self) -> dict[str, Any]:
        """Write the logits of all images, asked in the batch size under test, to the file the task names."""
        num = len(self.images_NCHW)
        blank = ("",) * num
        pixels = Pixels(torch.from_numpy(self.images_NCHW), torch.LongTensor([0] * num), blank, blank, ("",))
        np.save(self.task["logits"], predict(self.runner, pixels, batch_size=self.task["batch"]), allow_pickle=False)
        return {}

    def warm(self) -> dict[str, Any]:
        """Call until the median of the last five calls is within 5% of that of the five before."""
        times_s: list[float] = []
        steady, end = False, time.perf_counter() + MOST_WARM_S
        while not steady and len(times_s) < MOST_WARM_CALLS and time.perf_counter() < end:
            times_s.append(self.call()["wall_s"])
            last, before = times_s[-WINDOW:], times_s[-2 * WINDOW : -WINDOW]
            steady = len(before) == WINDOW and abs(np.median(last) / np.median(before) - 1) < STEADY
        gc.collect()
        gc.disable()
        return {"num_warm_calls": len(times_s), "steady": bool(steady)}

    def call(self) -> dict[str, float]:
        """Wall and processor seconds of one call."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.runner(self.batch_NCHW)
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def turn(self) -> dict[str, float]:
        """One timed call after one that is not, which brings the caches back from the other runners."""
        self.call()
        return self.call()

    def memory(self) -> dict[str, int]:
        """Bytes at the peak, and those the process held before the runner was opened."""
        return {"peak_bytes": peak_bytes(), "before_bytes": self.before_bytes}


def serve(bench: Bench, questions: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer until the questions end."""
    verbs = {verb.__name__: verb for verb in (bench.open, bench.predict, bench.warm, bench.turn, bench.memory)}
    answer({"threads": torch.get_num_threads()})
    for line in questions:
        answer(verbs[json.loads(line)["do"]]())


def _repeated(images_NCHW: np.ndarray, batch: int) -> np.ndarray:
    return images_NCHW[np.arange(batch) % len(images_NCHW)]


def main() -> None:
    """The process: `python -m toolkit.checks.benchmark_process <task as JSON>`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        serve(Bench(json.loads(sys.argv[1])), sys.stdin, answer)
    except ToolkitError as error:
        answer({"error": str(error), "type": type(error).__name__})
        sys.exit(1)


if __name__ == "__main__":
    main()
