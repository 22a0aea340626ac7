"""Stage `benchmark`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import toolkit.checks.benchmark as check
from toolkit.bundle import Bundle, Report, Store
from toolkit.data import ImageSet
from toolkit.release.benchmark_page import write_benchmark


def benchmark(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    runners: Sequence[str] = ("eager", "onnxruntime"),
    batch: Sequence[int] = (1, 8),
    rounds: int = 100,
    threads: int = 1,
    split: str = "test",
    run_dir: Path,
) -> Report:
    """Compare the runtimes that could serve a bundle: quality, agreement, latency, throughput, memory, size, load time.

    The first of `runners` is compared with; name one twice to see what the clock can tell apart. The report `benchmark` is
    kept beside the bundle, and a page with charts in `run_dir`. It sets no limits.
    """
    plan = check.BenchmarkPlan(runners=runners, batch=batch, rounds=rounds, threads=threads)
    report = check.benchmark(bundle, data, plan=plan, split=split)
    path = Path(run_dir) / "benchmark.html"
    write_benchmark(report, path)
    report = replace(report, details={**report.details, "files": {"page": str(path)}})
    store.add_report(report)
    return report
