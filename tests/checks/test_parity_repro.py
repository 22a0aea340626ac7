"""The repro of a fault runs without the model's code and shows the fault; made of a clean graph it shows none."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from tests.backends.small import altered, images_NCHW, small, written
from toolkit.bundle.atomic import replace_directory
from toolkit.checks.parity_localise import localise
from toolkit.checks.parity_repro import repro_files

ALONE = (
    "import sys, runpy; sys.modules['torch'] = sys.modules['toolkit'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clean"))[0]


@pytest.fixture
def graph(clean: Path, tmp_path: Path) -> Path:
    """A graph with one weight of `conv2` off by a tenth."""
    path = Path(shutil.copy(clean, tmp_path / "model.onnx"))
    scale = np.ones((16, 16, 3, 3))
    scale[3, 5, 1, 1] = 1.1
    altered(path, "net.conv2.weight", scale)
    return path


def fault_in(graph: Path) -> dict:
    return localise(small(), graph, images_NCHW()[:4]).plain()


def repro(graph: Path, fault: dict, folder: Path) -> Path:
    replace_directory(folder, repro_files(small(), graph, images_NCHW()[:4], fault, k=8.0, num_runs=5))
    return folder


def run(folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """In a fresh process that can import neither torch nor the toolkit, from somewhere else."""
    command = [sys.executable, "-c", ALONE, str(folder / "repro.py")]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)


def test_it_shows_the_fault_alone_and_nothing_but_the_fault(graph: Path, clean: Path, tmp_path: Path) -> None:
    fault = fault_in(graph)
    assert fault["culprit"]["module"] == "net.bn2"
    done = run(repro(graph, fault, tmp_path / "repro"), tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("FAULT") == 3
    assert fault["sentence"] in done.stdout
    part = onnx.load(tmp_path / "repro" / "model.onnx")
    assert 0 < len(part.graph.node) < len(onnx.load(graph).graph.node)
    assert {tensor.name for tensor in part.graph.initializer} == {"net.conv2.weight", "net.conv2.bias"}
    assert load_file(tmp_path / "repro" / "expected.safetensors")["output"].dtype == np.float64
    done = run(repro(clean, fault, tmp_path / "repro"), tmp_path)  # the same part of the right graph, over the old folder
    assert (done.returncode, done.stdout.count("within its noise")) == (0, 3)


def test_where_no_module_is_to_blame_the_part_is_the_whole_graph(graph: Path, clean: Path, tmp_path: Path) -> None:
    nobody = fault_in(clean)
    assert nobody["culprit"] is None
    for path, code in ((clean, 0), (graph, 1)):
        folder = repro(path, nobody, tmp_path / "repro")
        assert run(folder, tmp_path).returncode == code
        assert json.loads((folder / "fault.json").read_bytes())["num_nodes"] == len(onnx.load(path).graph.node)


def test_a_graph_with_external_data_is_looked_into_and_cut(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    large = tmp_path / "large" / "model.onnx"
    onnx.save_model(onnx.load(graph), str(large), save_as_external_data=True, location="model.data")
    fault = fault_in(large)
    assert fault["culprit"]["module"] == "net.bn2"
    assert sorted(path.name for path in large.parent.iterdir()) == ["model.data", "model.onnx"]
    assert run(repro(large, fault, tmp_path / "repro"), tmp_path).returncode == 1
