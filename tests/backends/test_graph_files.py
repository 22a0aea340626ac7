"""Graphs that reach outside their folder, through links, or past the end of their data are refused before they are run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.backends.small import images_NCHW, written
from toolkit.backends import OnnxRunner
from toolkit.errors import InputRefused


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph whose tensors lie in `weights.bin` beside it."""
    folder = tmp_path_factory.mktemp("external")
    path, _ = written(folder)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")
    return folder


@pytest.fixture
def graph(external: Path, tmp_path: Path) -> Path:
    shutil.copytree(external, tmp_path / "graph")
    return tmp_path / "graph" / "model.onnx"


def relocate(graph: Path, location: str) -> None:
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    graph.write_bytes(model.SerializeToString())


def test_a_graph_with_its_data_beside_it_runs(graph: Path) -> None:
    assert OnnxRunner(graph)(images_NCHW()[:2]).shape == (2, 3)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "..", "folder/weights.bin", "..\\secret.bin", ""])
def test_data_outside_the_folder_is_refused(graph: Path, location: str) -> None:
    shutil.copy(graph.parent / "weights.bin", graph.parents[1] / "secret.bin")
    relocate(graph, location)
    with pytest.raises(InputRefused, match="beside the graph"):
        OnnxRunner(graph)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_linked_data_is_refused(graph: Path, link: Callable[[Path, Path], None]) -> None:
    data = graph.parent / "weights.bin"
    data.rename(graph.parents[1] / "secret.bin")
    link(graph.parents[1] / "secret.bin", data)
    with pytest.raises(InputRefused, match="link"):
        OnnxRunner(graph)


def test_a_linked_graph_is_refused(graph: Path) -> None:
    (graph.parent / "linked.onnx").symlink_to(graph)
    with pytest.raises(InputRefused, match="not a plain file"):
        OnnxRunner(graph.parent / "linked.onnx")


def test_truncated_data_is_refused(graph: Path) -> None:
    data = graph.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(InputRefused, match="truncated"):
        OnnxRunner(graph)


def test_a_graph_in_memory_may_name_no_file(graph: Path) -> None:
    with pytest.raises(InputRefused, match="path of the graph"):
        OnnxRunner(graph.read_bytes())


def test_an_attribute_tensor_outside_the_folder_is_found(graph: Path) -> None:
    model = onnx.load(graph)
    outside = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret.bin")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=outside)], "inner", [], [])
    node = onnx.helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(InputRefused, match=r"'hidden'.*'../secret.bin'"):
        OnnxRunner(graph)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a" * 50])
def test_what_is_no_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputRefused, match=r"m\.onnx"):
        OnnxRunner(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_graph_cut_short_is_refused(graph: Path, share: float) -> None:
    content = graph.read_bytes()
    graph.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputRefused, match=r"model\.onnx"):
        OnnxRunner(graph)
