"""The stage: real processes agree and are measured (nothing is asserted about time); report, table and page tell the same."""

import io
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.backends.small import LABELS, PREPROCESSING, SIZE_PX, bundled, small
from toolkit.backends import write_onnx
from toolkit.bundle import ONNX, WEIGHTS, Bundle, Report, Store, lineage
from toolkit.checks.benchmark_plan import Timing
from toolkit.data.shapes import shapes
from toolkit.release.benchmark_page import render_benchmark
from toolkit.release.tables import show_report
from toolkit.stages.benchmark import benchmark

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Bundle, Report]:
    """A graph run against itself and against torch, each in a process of its own."""
    folder = tmp_path_factory.mktemp("benchmark")
    store = Store(folder / "store")
    parent = bundled(store)
    write_onnx(small(), folder / "model.onnx", preprocessing=PREPROCESSING, labels=LABELS, metadata={})
    manifest = replace(parent.manifest, lineage=lineage("export", parents=[parent.digest]), files={})
    bundle = store.add(manifest, weights=parent.weights(), files={ONNX: folder / "model.onnx"})
    report = benchmark(
        bundle,
        store=store,
        data=shapes(60, size_px=SIZE_PX, noise=20.0),
        runners=["onnxruntime", "onnxruntime", "eager"],
        precision=["fp32"],
        batch=[3],
        timing=Timing(rounds=6, launches=2),
        run_dir=folder,
    )
    return store, bundle, report


def test_a_runner_against_itself_gives_the_same_numbers_under_two_names(done: tuple[Store, Bundle, Report]) -> None:
    report = done[2]
    assert list(report.details["runners"]) == ["onnxruntime", "onnxruntime-2", "eager"]
    assert report.details["comparison"]["3"].keys() == {"onnxruntime-2", "eager"}
    for metric in ("accuracy", "top1_agreement", "max_error", "size"):
        assert report.value(f"{metric}.onnxruntime[batch=3]") == report.value(f"{metric}.onnxruntime-2[batch=3]")


def test_runners_agree_and_are_measured(done: tuple[Store, Bundle, Report]) -> None:
    _, bundle, report = done
    assert (report.check, report.verdict, report.subjects) == ("benchmark", "pass", (bundle.digest,))
    for runner in report.details["runners"]:
        where = f"{runner}[batch=3]"
        assert report.value(f"top1_agreement.{where}") == 1
        assert 0 < report.value(f"max_error.{where}") < 1e-3
        p50, p95, p99 = (report.value(f"{metric}.{where}") for metric in ("latency_median", "latency_p95", "latency_p99"))
        assert 0 < p50 <= p95 <= p99
        assert report.value(f"throughput.{where}") == pytest.approx(3000 / p50)
        assert report.value(f"memory.{where}") < 500  # torch and onnxruntime themselves are left out
        assert report.value(f"load_time.{where}") > 0
        assert report.value(f"first_call.{where}") > 0
        assert report.value(f"floors.{where}") < 8
    assert report.value("accuracy.eager[batch=3]") == report.value("accuracy.onnxruntime[batch=3]")
    assert report.value("size.onnxruntime[batch=3]") * 2**20 == pytest.approx(bundle.file(ONNX).stat().st_size)
    assert report.value("size.eager[batch=3]") * 2**20 == pytest.approx(bundle.file(WEIGHTS).stat().st_size)
    assert report.value("latency_ratio.eager[batch=3]") > 0
    for run in report.details["runs"]:
        assert (run["threads"], run["num_launches"], run["num_calls"] % 6) == (1, 2, 0)
    assert report.details["runs"][0]["settings"] == {"providers": ["CPUExecutionProvider"], "intra_op_threads": 1}
    assert report.details["runs"][2]["settings"] == {"device": "cpu", "torch_threads": 1, "autocast": "off"}
    assert report.details["reference"] == "torch float64"


def test_the_report_is_kept_and_the_page_is_whole(done: tuple[Store, Bundle, Report]) -> None:
    store, bundle, report = done
    assert store.reports(bundle.digest)["benchmark"].measurements == report.measurements
    page = Path(report.details["files"]["page"]).read_text(encoding="utf-8")
    assert page == render_benchmark(store.reports(bundle.digest)["benchmark"])
    assert bundle.short in page
    assert page.count('class="plot"') == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "onnxruntime-2" in page


def test_the_table_fits_a_terminal_of_100_columns_and_names_every_verdict(done: tuple[Store, Bundle, Report]) -> None:
    report = replace(
        done[2], details={**done[2].details, "comparison": {"3": {"onnxruntime-2": "no difference", "eager": "slower"}}}
    )
    console = Console(width=100, record=True, file=io.StringIO())
    show_report(report, console)
    text = console.export_text()
    assert "no difference" in text
    assert "slower" in text
    assert "…" not in text
    assert "onnxruntime-2" in text


def test_a_terminated_benchmark_exits_143_and_leaves_neither_folders_nor_processes(
    done: tuple[Store, Bundle, Report], tmp_path: Path
) -> None:
    store, bundle, _ = done
    places = [
        f"bundle={bundle.digest}",
        f"store={store.root}",
        "data=shapes",
        "data.num_samples=60",
        f"hydra.run.dir={tmp_path}/run",
    ]
    settings = [
        "plugins=[tests.backends.small]",
        "runners=[onnxruntime]",
        "batch=[1]",
        "timing.rounds=100000",
        "timing.launches=2",
    ]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "toolkit.cli", "benchmark", *places, *settings]
    child = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(temporary.glob("benchmark-*/*")):
        assert child.poll() is None
        time.sleep(0.01)
    child.terminate()
    assert child.wait(60) == 143
    assert list(temporary.glob("benchmark-*")) == []
    deadline = time.monotonic() + 60
    while alive(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(session: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True
