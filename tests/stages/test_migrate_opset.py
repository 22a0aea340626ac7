"""An old graph reaches a newer opset with the answers it had, or does not become a bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.checks.planted import images, stored, trained
from tests.migration.graph_forms import write_form
from toolkit.backends import graph_opset, open_runner
from toolkit.bundle import ONNX, Bundle, Store
from toolkit.errors import CheckFailed, UsageError
from toolkit.stages import migrate_opset as stage
from toolkit.stages.adopt import adopt
from toolkit.stages.migrate_opset import migrate_opset


@pytest.fixture
def old(store: Store, tmp_path: Path) -> Bundle:
    """A graph of opset 11 whose weights are listed as inputs, as they had to be before IR 4."""
    path = write_form("probabilities", tmp_path / "net.onnx", num_epochs=1)
    model = onnx.load(path)
    model.opset_import[0].version, model.ir_version = 11, 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(model, path)
    return adopt("onnx", store=store, checkpoint=path, kwargs={"input": "pixels"}, labels=images().labels)


def test_a_newer_opset_with_the_same_answers(old: Bundle, store: Store) -> None:
    new = migrate_opset(old, store=store, data=images(), opset=18)
    assert graph_opset(new.file(ONNX)) == 18
    assert new.manifest.architecture.kwargs == {"opset": 18, "ir_version": 8}
    assert new.manifest.contract == old.manifest.contract
    assert new.manifest.lineage.parents == (old.digest,)
    assert len(onnx.load(new.file(ONNX)).graph.input) == 1
    images_NCHW = np.random.default_rng(0).uniform(0, 255, (5, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(open_runner(new)(images_NCHW), open_runner(old)(images_NCHW), atol=1e-5)
    report = store.reports(new.digest)["parity"]
    assert report.verdict == "pass"
    assert report.value("top1_agreement") == 1
    assert migrate_opset(old, store=store, data=images(), opset=18) == new


def test_a_conversion_that_changes_the_model_becomes_no_bundle(
    old: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = stage.convert_opset

    def faulty(source: Path, target: Path, *, opset: int) -> int:
        version = convert(source, target, opset=opset)
        model = onnx.load(target)
        node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
        next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 2e-5
        onnx.save(model, target)
        return version

    monkeypatch.setattr(stage, "convert_opset", faulty)
    with pytest.raises(CheckFailed, match=r"another model.*parity\.failed"):
        migrate_opset(old, store=store, data=images(), opset=18)
    assert store.digests() == [old.digest]


def test_what_cannot_be_migrated_is_refused(old: Bundle, store: Store) -> None:
    for opset in (11, 9, 999):
        with pytest.raises(UsageError, match="choose one above it"):
            migrate_opset(old, store=store, data=images(), opset=opset)
    with pytest.raises(UsageError, match="export it again"):
        migrate_opset(stored(store, trained(num_epochs=1)), store=store, data=images())
