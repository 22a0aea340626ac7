"""The writer: what was asked for is in the file, nothing else is, and a broken graph is no file."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.backends.small import LABELS, PREPROCESSING, SIZE_PX, images_NCHW, small, written
from toolkit.backends import EagerRunner, ExportFacts, OnnxRunner, exporter_registry, write, write_onnx
from toolkit.backends.describe import module_path
from toolkit.backends.exporter_registry import operators_kept
from toolkit.bundle import Preprocessing
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.models import Deployed


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportFacts]:
    return written(tmp_path_factory.mktemp("graph"))


def test_the_graph_keeps_what_was_asked_for(graph: tuple[Path, ExportFacts]) -> None:
    path, facts = graph
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20] == [facts.opset]
    dims = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert dims == [["batch", 3, SIZE_PX, SIZE_PX], ["batch", 3]]
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["images", "logits"]
    assert facts.num_nodes == len(model.graph.node)
    assert facts.num_bytes == path.stat().st_size
    assert not facts.external_data
    assert all(seconds > 0 for seconds in facts.seconds.values())


def test_the_graph_tells_its_labels_preprocessing_and_parent(graph: tuple[Path, ExportFacts]) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(graph[0]).metadata_props}
    assert json.loads(properties["labels"]) == list(LABELS)
    assert json.loads(properties["preprocessing"]) == json.loads(json.dumps(asdict(PREPROCESSING)))
    assert properties["parent"] == "ab" * 32
    assert properties["toolkit"].startswith("model-upgrade-toolkit ")


def test_nodes_name_their_modules_and_no_place_of_this_machine(graph: tuple[Path, ExportFacts]) -> None:
    content = graph[0].read_bytes()
    here = Path(__file__).resolve()
    assert not [place for place in (str(here.parents[2]), str(Path.home()), "site-packages") if place.encode() in content]
    nodes = onnx.load(graph[0]).graph.node
    assert {"net.bn1", "net.bn2", "net.act", "net.head"} <= {module_path(node) for node in nodes}
    sources = [entry.value for node in nodes for entry in node.metadata_props if entry.key == "source"]
    assert any(source.startswith("tests/backends/small.py:") for source in sources)


def test_equal_models_give_equal_bytes(graph: tuple[Path, ExportFacts], tmp_path: Path) -> None:
    assert written(tmp_path)[0].read_bytes() == graph[0].read_bytes()


def test_normalisation_is_inside(graph: tuple[Path, ExportFacts]) -> None:
    expected_NK = EagerRunner(small(), dtype="float64")(images_NCHW())
    np.testing.assert_allclose(OnnxRunner(graph[0])(images_NCHW()), expected_NK, rtol=1e-4, atol=1e-5)


def test_writing_is_silent_and_leaves_the_module_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deployed = small().train()
    before = {name: tensor.clone() for name, tensor in deployed.state_dict().items()}
    written(tmp_path, deployed)
    output = capfd.readouterr()
    assert output.out + output.err == ""
    assert deployed.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in deployed.state_dict().items())


def test_a_large_graph_keeps_its_tensors_in_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "EXTERNAL_ABOVE_BYTES", 1000)
    path, facts = written(tmp_path)
    assert facts.external_data
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert facts.num_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert OnnxRunner(path)(images_NCHW()[:2]).shape == (2, 3)


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_the_exporter_would_replace_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=rf"opset is {opset}.*18 to 23"):
        write_onnx(small(), tmp_path / "m.onnx", preprocessing=PREPROCESSING, labels=LABELS, opset=opset)


class BatchOfTwo(nn.Module):
    """Its batch size is part of its arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.head(images_NCHW.mean((2, 3)).reshape(1, 6)).expand(2, 3)


class FixedByLength(nn.Module):
    """It takes its batch size as a plain number, which the exporter bakes in without a word."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean((2, 3)) + torch.ones(3).expand(len(images_NCHW), 3)


class DataDependent(nn.Module):
    """It looks at the pixels to choose a branch."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean((2, 3)) if images_NCHW.sum() > 0 else images_NCHW.amax((2, 3))


class TwoLabels(nn.Module):
    """It has a label less than it is said to have."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean((2, 3))[:, :2]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (BatchOfTwo(), "exported"),
        (FixedByLength(), r"batch dimension of 'images' is fixed.*len\(x\)"),
        (DataDependent(), "DataDependent cannot be exported to ONNX: .*control flow"),
        (TwoLabels(), r"for a batch of 1 its output has shape \[1, 2\], not \[1, 3\]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_served_is_refused_and_leaves_no_file(tmp_path: Path, net: nn.Module, reason: str) -> None:
    preprocessing = Preprocessing((8, 8))
    with pytest.raises(InputRefused, match=reason):
        write_onnx(Deployed(net, preprocessing), tmp_path / "m.onnx", preprocessing=preprocessing, labels=LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="Cannot write"):
        write_onnx(small(), tmp_path / "file" / "m.onnx", preprocessing=PREPROCESSING, labels=LABELS)


def test_the_kept_operators_are_the_exporters_own_and_leave_it_as_it_was() -> None:
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    own = registration.ONNXRegistry.from_torchlib(opset_version=20)
    with operators_kept(20):
        kept = registration.ONNXRegistry.from_torchlib(opset_version=20)
        kept.functions.clear()
        again = registration.ONNXRegistry.from_torchlib(opset_version=20)
        other = registration.ONNXRegistry.from_torchlib(opset_version=18)
    described = [
        {name: [(d.fx_target, d.is_complex, d.opset_introduced) for d in found] for name, found in registry.functions.items()}
        for registry in (own, again, registration.ONNXRegistry.from_torchlib(opset_version=20))
    ]
    assert described[0] == described[1] == described[2]
    assert (again.opset_version, other.opset_version) == (20, 18)


def test_where_the_exporters_private_parts_look_different_it_builds_its_own_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_registry, "_kept", {})
    monkeypatch.setattr(exporter_registry, "_listed", lambda opset: 1 / 0)
    facts = write_onnx(small(), tmp_path / "m.onnx", preprocessing=PREPROCESSING, labels=LABELS)
    assert facts.num_nodes > 0
    assert exporter_registry._kept == {}
