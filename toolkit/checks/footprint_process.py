"""One graph alone in a process with onnxruntime and numpy, as a service runs it: what the gate asks for memory and throughput.

It answers the questions of `benchmark_process` that the gate asks, and imports nothing else of the toolkit: torch alone would
take seconds, twice a gate, and the graph needs none of it.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from toolkit.checks.peak_memory import peak_bytes

FATAL_ONLY = 4


class GraphBench:
    """The graph under test; `task` names it (`graph`), the batch to give it as it is (`images`) and the `threads`."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.batch = np.load(task["images"], allow_pickle=False)
        self.before_bytes = peak_bytes()

    def open(self) -> dict[str, float]:
        """Milliseconds until the session stands and, apart, those of its first call."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads, options.inter_op_num_threads = self.task["threads"], 1
        start = time.perf_counter()
        self.session = onnxruntime.InferenceSession(self.task["graph"], options, providers=["CPUExecutionProvider"])
        opened = time.perf_counter()
        self.name = self.session.get_inputs()[0].name
        self._call()
        return {"load_ms": 1e3 * (opened - start), "first_call_ms": 1e3 * (time.perf_counter() - opened)}

    def turn(self) -> dict[str, float]:
        """Wall and processor seconds of one call after one that is not timed."""
        self._call()
        cpu, wall = time.process_time(), time.perf_counter()
        self._call()
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def memory(self) -> dict[str, int]:
        """Bytes at the peak, and those the process held before the graph was opened."""
        return {"peak_bytes": peak_bytes(), "before_bytes": self.before_bytes}

    def _call(self) -> None:
        self.session.run(None, {self.name: self.batch})


def main() -> None:
    """The process: `python -m toolkit.checks.footprint_process <task as JSON>`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    bench = GraphBench(json.loads(sys.argv[1]))
    verbs = {verb.__name__: verb for verb in (bench.open, bench.turn, bench.memory)}
    print(json.dumps({"threads": bench.task["threads"]}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(verbs[json.loads(line)["do"]]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
