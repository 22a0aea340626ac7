"""An ONNX graph in service, in whatever form, becomes a baseline that answers as it did; what is unsafe is refused."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

from tests.checks.planted import images, stored, trained
from tests.migration.graph_forms import FORMS, write_form
from toolkit.backends import OnnxRunner, open_runner
from toolkit.backends.graph_cost import graph_macs, graph_parameters
from toolkit.bundle import ONNX, Store
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.errors import InputRefused, UsageError
from toolkit.models import restore
from toolkit.release.tables import show_bundle
from toolkit.stages.adopt import adopt
from toolkit.stages.evaluate import evaluate
from toolkit.stages.gate import gate

IMAGES_NCHW = np.random.default_rng(0).integers(0, 256, (11, 3, 32, 32)).astype(np.float32)
PIXELS = {"input": "pixels"}


def softmax(scores_NK: np.ndarray) -> np.ndarray:
    powers_NK = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    return powers_NK / powers_NK.sum(1, keepdims=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_the_graph_in_its_plain_form(form: str, store: Store, tmp_path: Path) -> None:
    plain = OnnxRunner(write_form("pixels", tmp_path / "plain.onnx"))(IMAGES_NCHW)
    bundle = adopt("onnx", store=store, checkpoint=write_form(form, tmp_path / "net.onnx"), **FORMS[form])
    answer = open_runner(store.open(bundle.digest))(IMAGES_NCHW)
    if form == "probabilities":
        plain, answer = softmax(plain), softmax(answer)
    np.testing.assert_allclose(answer, plain, atol=2e-5)


def test_the_contract_is_the_graphs(store: Store, tmp_path: Path) -> None:
    bundle = adopt("onnx", store=store, checkpoint=write_form("uint8_nhwc", tmp_path / "net.onnx"), alias="production")
    assert store.open("production") == bundle
    taken, given = bundle.manifest.contract.inputs[0], bundle.manifest.contract.outputs[0]
    assert (taken.name, taken.dtype, taken.dims, taken.layout) == ("photos", "uint8", ("n", 32, 32, 3), "NHWC")
    assert (taken.meaning, taken.value_range) == ("pixels", (0.0, 255.0))
    assert (given.name, given.dims, given.meaning) == ("logits", ("batch", 3), "logits")
    assert bundle.manifest.architecture.kwargs == {"opset": 20, "ir_version": 10}
    assert bundle.manifest.labels == ("0", "1", "2")
    assert bundle.manifest.preprocessing.size_px == (32, 32)
    assert bundle.file(ONNX).read_bytes() == (tmp_path / "net.onnx").read_bytes()
    assert store.reports(bundle.digest)["adopt"].value("opset") == 20
    console = Console(width=140, record=True, file=io.StringIO())
    show_bundle(bundle, store, console)
    shown = console.export_text()
    for part in ("onnx, opset 20, IR version 10", "photos: uint8 (n, 32, 32, 3), pixels", "logits: float32 (batch, 3), logits"):
        assert part in shown


def test_the_same_graph_gives_the_same_bundle_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    first = adopt("onnx", store=store, checkpoint=write_form("pixels", tmp_path / "net.onnx"), kwargs=PIXELS)
    (tmp_path / "moved").mkdir()
    (tmp_path / "net.onnx").rename(tmp_path / "moved" / "net.onnx")
    assert adopt("onnx", store=store, checkpoint=tmp_path / "moved" / "net.onnx", kwargs=PIXELS) == first
    assert str(tmp_path) not in (first.path / "manifest.json").read_text()


def test_an_old_graph_of_another_framework_is_described_and_runs(store: Store) -> None:
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    bundle = adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    assert bundle.manifest.architecture.kwargs == {"opset": 9, "ir_version": 3}
    contract = bundle.manifest.contract
    assert contract.inputs[0].dims == (1, 3, 224, 224)
    assert (contract.outputs[0].dims, contract.outputs[0].meaning) == ((1, 1000, 1, 1), "probabilities")
    assert open_runner(bundle)(np.full((3, 3, 224, 224), 99, np.float32)).shape == (3, 1000)
    assert graph_macs(bundle.file(ONNX), image=(1, 3, 224, 224)) == pytest.approx(349e6, rel=0.01)
    assert graph_parameters(bundle.file(ONNX)) is None  # its weights are made by nodes


def test_external_data_comes_along_and_its_damage_is_refused(store: Store, tmp_path: Path) -> None:
    path = write_form("pixels", tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    assert sorted(bundle.manifest.files) == [ONNX, "w.bin"]
    (tmp_path / "elsewhere").mkdir()
    data = tmp_path / "w.bin"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(InputRefused, match="truncated"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    (tmp_path / "elsewhere" / "w.bin").write_bytes(content)
    data.unlink()
    data.symlink_to(tmp_path / "elsewhere" / "w.bin")
    with pytest.raises(InputRefused, match="link"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    data.unlink()
    onnx.save(onnx.load(bundle.file(ONNX)), path, save_as_external_data=True, location="manifest.json", size_threshold=0)
    with pytest.raises(InputRefused, match="a name that a bundle uses itself"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    assert store.digests() == [bundle.digest]


def test_what_the_graph_does_not_say_is_asked_for(store: Store, tmp_path: Path) -> None:
    path = write_form("pixels", tmp_path / "net.onnx")
    for kwargs, preprocessing, message in (
        ({}, {}, "input:pixels.*input:normalised"),
        ({"input": "normalised"}, {}, "preprocessing.mean and preprocessing.std"),
        ({"input": "floats"}, {}, "pixels or normalised"),
        ({"inputs": "pixels"}, {}, "Did you mean input"),
        (PIXELS, {"size_px": [64, 64]}, "the graph fixes them"),
        ({**PIXELS, "output": "probabilities"}, {}, "do not add up to 1"),
    ):
        with pytest.raises(UsageError, match=message):
            adopt("onnx", store=store, checkpoint=path, kwargs=kwargs, preprocessing=preprocessing)
    with pytest.raises(UsageError, match=r"preprocessing\.size_px"):
        adopt("onnx", store=store, checkpoint=write_form("any_size", path), kwargs=PIXELS)
    with pytest.raises(UsageError, match="checkpoint"):
        adopt("onnx", store=store)
    with pytest.raises(InputRefused, match="3 classes and 2 labels"):
        adopt("onnx", store=store, checkpoint=write_form("pixels", path), kwargs=PIXELS, labels=["a", "b"])
    assert store.digests() == []


def test_what_is_no_sound_graph_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(InputRefused, match="missing"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    path.write_bytes(b"not a graph")
    with pytest.raises(InputRefused, match="not an ONNX graph"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    model = onnx.load(write_form("pixels", path))
    model.graph.node[0].CopyFrom(helper.make_node("Sub", ["images", "nowhere"], ["shifted"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputRefused, match="not a valid graph"):
        adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    assert store.digests() == []


def test_a_batch_that_is_free_in_name_only_is_described_as_it_is(store: Store, tmp_path: Path) -> None:
    path = write_form("pixels", tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("one_row", onnx.TensorProto.INT64, [2], [1, -1]))
    model.graph.node[-1].output[0] = "rows"
    model.graph.node.append(helper.make_node("Reshape", ["rows", "one_row"], ["logits"]))
    onnx.save(model, path)
    bundle = adopt("onnx", store=store, checkpoint=path, kwargs=PIXELS)
    assert bundle.manifest.contract.inputs[0].dims[0] == 1
    assert "one image at a time" in store.reports(bundle.digest)["adopt"].details["notes"][0]
    assert open_runner(bundle)(IMAGES_NCHW).shape == (11, 3)


def test_a_graph_has_no_module(store: Store, tmp_path: Path) -> None:
    bundle = adopt("onnx", store=store, checkpoint=write_form("pixels", tmp_path / "net.onnx"), kwargs=PIXELS)
    with pytest.raises(InputRefused, match=r"no torch module.*adopt the checkpoint"):
        restore(bundle)


@pytest.mark.parametrize("form", ["uint8_nhwc", "fixed_batch"])
def test_a_graph_is_evaluated_and_is_a_baseline(form: str, store: Store, tmp_path: Path) -> None:
    path = write_form(form, tmp_path / "net.onnx", num_epochs=3)
    baseline = adopt("onnx", store=store, checkpoint=path, labels=images().labels, **FORMS[form])
    candidate = stored(store, trained(num_epochs=3), graph=tmp_path / "new.onnx")
    assert evaluate(baseline, store=store, data=images()).value("accuracy") == pytest.approx(
        evaluate(candidate, store=store, data=images()).value("accuracy"), abs=0.003
    )
    limits = GateLimits({"accuracy": Rule("accuracy.difference", ">=", -0.03, reason="planted", judged_by="interval")})
    report = gate(candidate, store=store, baseline=baseline, data=images(), limits=limits, latency_rounds=10)
    assert report.verdict == "pass"
    for name in ("macs.ratio", "parameters.ratio"):
        assert report.value(name) == 1
    assert report.value("contract.breaking") > 0
