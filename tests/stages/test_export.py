"""The stage: an exported bundle that the serving side can check alone, or no bundle and a report that says why."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

import toolkit.stages.export as stage
from tests.backends.small import LABELS, SIZE_PX, altered, bundled
from toolkit.backends import ExportFacts, open_runner, write_onnx
from toolkit.bundle import GOLDEN, ONNX, WEIGHTS, Bundle, Report, Store
from toolkit.checks.parity import ParityLimits
from toolkit.data import ImageSet
from toolkit.data.shapes import shapes
from toolkit.errors import CheckFailed, InputRefused, Undecided, UsageError
from toolkit.stages.export import export

LIMITS = ParityLimits(batches=[1, 5])


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(100, size_px=SIZE_PX, noise=20.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, data: ImageSet) -> tuple[Store, Bundle, Bundle]:
    """A store with a bundle and its exported child."""
    store = Store(tmp_path_factory.mktemp("export") / "store")
    parent = bundled(store)
    return store, parent, export(parent, store=store, data=data, limits=LIMITS, num_golden=4)


def test_the_child_is_the_parent_and_its_graph(shared: tuple[Store, Bundle, Bundle]) -> None:
    store, parent, child = shared
    assert set(child.manifest.files) == {WEIGHTS, ONNX, GOLDEN}
    assert child.manifest.files[WEIGHTS] == parent.manifest.files[WEIGHTS]
    assert child.manifest.lineage.stage == "export"
    assert child.manifest.lineage.parents == (parent.digest,)
    assert child.manifest.labels == LABELS
    assert store.open(child.digest) == child
    properties = {entry.key: entry.value for entry in onnx.load(child.file(ONNX)).metadata_props}
    assert properties["parent"] == parent.digest


def test_contract_and_graph_agree(shared: tuple[Store, Bundle, Bundle]) -> None:
    child = shared[2]
    session = onnxruntime.InferenceSession(child.file(ONNX), providers=["CPUExecutionProvider"])
    for found, spec in (
        (session.get_inputs()[0], child.manifest.contract.inputs[0]),
        (session.get_outputs()[0], child.manifest.contract.outputs[0]),
    ):
        assert (found.name, tuple(found.shape), found.type) == (spec.name, spec.dims, "tensor(float)")


def test_golden_inputs_repeat_with_onnxruntime_alone(shared: tuple[Store, Bundle, Bundle]) -> None:
    child = shared[2]
    golden = load_file(child.file(GOLDEN))
    assert golden["images"].shape == (4, 3, SIZE_PX, SIZE_PX)
    assert golden["images"].max() > 100
    session = onnxruntime.InferenceSession(child.file(ONNX), providers=["CPUExecutionProvider"])
    (logits_NK,) = session.run(None, {"images": golden["images"]})
    np.testing.assert_allclose(logits_NK, golden["logits"], rtol=1e-4, atol=1e-5)


def test_reports_tell_parity_and_phases(shared: tuple[Store, Bundle, Bundle]) -> None:
    store, parent, child = shared
    reports = store.reports(child.digest)
    assert set(reports) == {"parity", "export"}
    assert reports["parity"].verdict == "pass"
    assert reports["parity"].subjects == (child.digest, parent.digest)
    assert reports["export"].value("opset") == 20
    assert reports["export"].value("num_nodes") > 5
    assert reports["export"].value("size") * 2**20 == pytest.approx(child.file(ONNX).stat().st_size)
    assert {"fast_trace_time", "write_time", "verify_time"} <= {m.name for m in reports["export"].measurements}


def test_the_same_export_is_found_not_made_again(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, parent, child = shared
    monkeypatch.setattr(stage, "write_onnx", lambda *_args, **_kwargs: pytest.fail("it was exported again"))
    assert export(parent, store=store, data=data, limits=LIMITS, num_golden=4) == child


def test_a_bundle_whose_report_was_lost_is_proved_again(shared: tuple[Store, Bundle, Bundle], data: ImageSet) -> None:
    store, parent, child = shared
    (store.root / "reports" / child.digest / "parity.json").unlink()
    assert export(parent, store=store, data=data, limits=LIMITS, num_golden=4) == child
    assert store.reports(child.digest)["parity"].verdict == "pass"


def test_an_exported_bundle_answers_through_its_graph(shared: tuple[Store, Bundle, Bundle]) -> None:
    child = shared[2]
    golden = load_file(child.file(GOLDEN))
    np.testing.assert_allclose(
        open_runner(child)(golden["images"]), open_runner(child, kind="eager")(golden["images"]), rtol=1e-4, atol=1e-5
    )


def spoilt(spoil: Callable[[Path], None]) -> Callable[..., ExportFacts]:
    """The real writer, followed by a fault in the file it wrote."""

    def write(deployed: Any, path: Path, **rest: Any) -> ExportFacts:
        facts = write_onnx(deployed, path, **rest)
        spoil(path)
        return facts

    return write


def test_a_graph_that_is_not_the_model_becomes_no_bundle(store: Store, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = bundled(store)
    monkeypatch.setattr(stage, "write_onnx", spoilt(lambda path: altered(path, "net.conv2.weight", 1.05)))
    with pytest.raises(CheckFailed, match=r"error_ratio\.max is .* limit <= 8 .*No bundle was made") as raised:
        export(parent, store=store, data=data, limits=LIMITS)
    assert store.digests() == [parent.digest]
    path = Path(str(raised.value).rsplit("the report is ", 1)[1].rstrip("."))
    report = Report.from_json(path.read_bytes(), str(path))
    assert (report.check, report.verdict, report.subjects) == ("parity.failed", "fail", (parent.digest,))
    assert raised.value.exit_code == 1
    message = str(raised.value)
    assert re.search(r"net\.conv2 \+ net\.bn2 \(Conv, tests/backends/small\.py:\d+\): its error is .* floors, at most", message)
    repro = path.parent / report.details["repro"]
    assert f"python {repro / 'repro.py'}" in message
    assert {"model.onnx", "inputs.safetensors", "expected.safetensors", "repro.py"} <= {p.name for p in repro.iterdir()}
    assert sorted(p.name for p in path.parent.iterdir()) == ["parity.failed.json", "parity.failed.repro"]
    assert set(store.reports(parent.digest)) == {"parity.failed"}


def test_what_cannot_be_decided_becomes_no_bundle(store: Store, data: ImageSet) -> None:
    parent = bundled(store)
    strict = ParityLimits(batches=[1], max_float32_share=1e-12)
    with pytest.raises(Undecided, match="ill-conditioned") as raised:
        export(parent, store=store, data=data, limits=strict)
    assert store.digests() == [parent.digest]
    assert raised.value.exit_code == 5


def test_bad_settings_and_too_little_data_are_refused_before_any_work(store: Store, data: ImageSet) -> None:
    parent = bundled(store)
    with pytest.raises(UsageError, match="num_golden is 0"):
        export(parent, store=store, data=data, num_golden=0)
    with pytest.raises(InputRefused, match="test images; 90 are needed"):
        export(parent, store=store, data=data, num_golden=90)
    with pytest.raises(UsageError, match="opset is 17"):
        export(parent, store=store, data=data, opset=17)
    assert store.digests() == [parent.digest]


def test_equal_exports_have_equal_digests(shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path) -> None:
    other = Store(tmp_path / "elsewhere")
    assert export(bundled(other), store=other, data=data, limits=LIMITS, num_golden=4).digest == shared[2].digest


def test_the_failure_report_is_plain_json(store: Store, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = bundled(store)
    monkeypatch.setattr(stage, "write_onnx", spoilt(lambda path: altered(path, "net.head.bias", float("nan"))))
    with pytest.raises(CheckFailed, match="finite is 0"):
        export(parent, store=store, data=data, limits=LIMITS)
    content = (store.root / "reports" / parent.digest / "parity.failed.json").read_text()
    assert json.loads(content)["verdict"] == "fail"
