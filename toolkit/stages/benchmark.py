"""Stage `benchmark`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import toolkit.checks.benchmark as check
from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.benchmark_plan import BenchmarkPlan, Timing
from toolkit.data import ImageSet
from toolkit.release.benchmark_page import write_benchmark

DEFAULT_TIMING = Timing()


def benchmark(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    runners: Sequence[str] = ("eager", "onnxruntime"),
    precision: Sequence[str] = ("fp32",),
    batch: Sequence[int] = (1, 8),
    timing: Timing = DEFAULT_TIMING,
    split: str = "test",
    run_dir: Path,
) -> Report:
    """Compare the runtimes that could serve a bundle: quality, agreement, latency, throughput, memory, size, load time.

    `runners` are eager, compile, onnxruntime and openvino, or with a device eager-cuda, compile-cuda, onnxruntime-cuda and
    onnxruntime-tensorrt; each is run in every `precision` (fp32, bf16, fp16, int8) that it has and at every `batch` size. The
    first of `runners` is compared with; name one twice to see what the clock can tell apart. The report `benchmark` is
    kept beside the bundle, and a page with charts in `run_dir`. It sets no limits.
    """
    plan = BenchmarkPlan(runners=runners, precision=precision, batch=batch, timing=timing)
    report = check.benchmark(bundle, data, plan=plan, split=split)
    path = Path(run_dir) / "benchmark.html"
    write_benchmark(report, path)
    report = replace(report, details={**report.details, "files": {"page": str(path)}})
    store.add_report(report)
    return report
