"""A successor behind an adapter answers the callers of an ONNX-only predecessor; what cannot be mapped is refused by name."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.checks.planted import PREPROCESSING, images, stored, tiny, trained, write_graph
from tests.migration.graph_forms import FORMS, write_form
from toolkit.bundle import ONNX, Architecture, Bundle, Contract, Manifest, Store, TensorSpec, lineage
from toolkit.checks import adaptation
from toolkit.checks.adaptation import adapt_contract, adapter_parity
from toolkit.checks.regression_contract import contract_differences
from toolkit.data import Normalise, load_pixels, render
from toolkit.errors import CheckFailed, InputRefused, UsageError
from toolkit.models import pixel_contract
from toolkit.stages.adopt import adopt

LABELS = images().labels
ORDER = ("triangle", "circle", "square")
PIXELS_NHWC = load_pixels(images().split("test"), PREPROCESSING).images_NCHW[:9].permute(0, 2, 3, 1).contiguous().numpy()


def predecessor(store: Store, tmp_path: Path, form: str, *, labels: tuple[str, ...] = LABELS, **changes: Any) -> Bundle:
    path = write_form(form, tmp_path / f"old-{form}.onnx")
    if changes:
        model = onnx.load(path)
        changes["of"](model)
        onnx.save(model, path)
    return adopt("onnx", store=store, checkpoint=path, labels=labels, **FORMS[form])


def ask(bundle: Bundle, given: np.ndarray) -> np.ndarray:
    """The bundle's graph as a caller runs it, by the names of its contract."""
    session = onnxruntime.InferenceSession(bundle.file(ONNX), providers=["CPUExecutionProvider"])
    taken, scores = bundle.manifest.contract.inputs[0], bundle.manifest.contract.outputs[0]
    return session.run([scores.name], {taken.name: given})[0]


def logits(size_px: int = 32, *, order: tuple[str, ...] = LABELS) -> np.ndarray:
    """What the successor says in torch of PIL's pixels, its labels in `order`."""
    spec = replace(PREPROCESSING, size_px=(size_px, size_px))
    pixels_NCHW = torch.from_numpy(np.stack([render(image, spec) for image in PIXELS_NHWC])).permute(0, 3, 1, 2)
    with torch.no_grad():
        answer_NK = trained(num_epochs=1, seed=1, size_px=size_px)(Normalise(spec)(pixels_NCHW))
    return answer_NK[:, [LABELS.index(label) for label in order]].numpy()


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits_NK).softmax(1).numpy()


def successor(store: Store, tmp_path: Path, *, size_px: int = 32) -> Bundle:
    net = trained(num_epochs=1, seed=1, size_px=size_px)
    return stored(store, net, size_px=size_px, graph=tmp_path / "new.onnx")


def adapted_to(old: Bundle, new: Bundle, store: Store, **rest: Any) -> tuple[Bundle, list[str]]:
    found = adapt_contract(new, old, images(), store=store, **rest)
    assert found.details["refused"] == []
    assert found.bundle.manifest.lineage.parents == (new.digest,)
    assert contract_differences(old.manifest, found.bundle.manifest) == []
    parity = store.reports(found.bundle.digest)["parity"]
    assert parity.verdict == "pass"
    assert parity.details["adapter"] == found.details["steps"]
    return store.open(found.bundle.digest), found.details["steps"]


def renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "0.weight.x"


def in_half(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["scores"], to=TensorProto.FLOAT16))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT16, ["batch", 3]))


def with_softmax(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["scores"]))
    model.graph.output[0].name = "scores"


CASES: dict[str, tuple[str, dict[str, Any], Any, Any, list[str]]] = {
    "renamed input": ("pixels", {"of": renamed}, np.float32, lambda x: x, ["input '0.weight.x' in place of 'images'"]),
    "uint8, channels last": (
        "uint8_nhwc",
        {},
        np.uint8,
        lambda x: x,
        ["input 'photos' in place of 'images'", "input uint8 in place of float32", "input NHWC in place of NCHW"],
    ),
    "probabilities": (
        "probabilities",
        {},
        np.float32,
        softmax,
        ["logits to probabilities (softmax)", "output 'scores' in place of 'logits'"],
    ),
    "half": ("pixels", {"of": in_half}, np.float32, lambda x: x, ["output 'scores' in place of 'logits'"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_mapping_alone_answers_as_the_successor(case: str, store: Store, tmp_path: Path) -> None:
    form, changes, dtype, said, words = CASES[case]
    old = predecessor(store, tmp_path, form, **changes)
    bundle, steps = adapted_to(old, successor(store, tmp_path), store)
    given = PIXELS_NHWC if form == "uint8_nhwc" else PIXELS_NHWC.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ask(bundle, given.astype(dtype)), said(logits()), atol=2e-5 if case != "half" else 2e-2)
    assert set(words) <= set(steps)


def test_normalised_input_in_a_fixed_batch_of_eight(store: Store, tmp_path: Path) -> None:
    bundle, steps = adapted_to(predecessor(store, tmp_path, "normalised"), successor(store, tmp_path), store)
    given_NCHW = ((PIXELS_NHWC / 255.0 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(ask(bundle, given_NCHW), logits(), atol=2e-5)
    assert "normalised values back to pixels 0..255" in steps
    old = predecessor(store, tmp_path, "fixed_batch", labels=ORDER)
    bundle, steps = adapted_to(old, successor(store, tmp_path), store)
    given_NCHW = PIXELS_NHWC[:8].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(ask(bundle, given_NCHW), logits(order=ORDER)[:8], atol=2e-5)
    assert "batch fixed at 8" in steps


@pytest.mark.parametrize("form", ["pixels", "any_size", "normalised"])
def test_labels_are_put_in_order_by_name_and_images_resized(form: str, store: Store, tmp_path: Path) -> None:
    old = predecessor(store, tmp_path, form, labels=ORDER)
    bundle, steps = adapted_to(old, successor(store, tmp_path, size_px=64), store)
    given_NCHW = PIXELS_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
    if form == "normalised":
        given_NCHW = ((given_NCHW / 255 - 0.5) / 0.5).astype(np.float32)
    np.testing.assert_allclose(ask(bundle, given_NCHW), logits(64, order=ORDER), atol=0.1)  # a level of rounding here and there
    assert "labels put in order by name: triangle, circle, square" in steps
    assert any("64×64 px (bilinear)" in step for step in steps)


def test_all_mappings_together(store: Store, tmp_path: Path) -> None:
    old = predecessor(store, tmp_path, "uint8_nhwc", labels=ORDER, of=with_softmax)
    assert old.manifest.contract.outputs[0].meaning == "probabilities"
    bundle, steps = adapted_to(old, successor(store, tmp_path, size_px=64), store)
    np.testing.assert_allclose(ask(bundle, PIXELS_NHWC), softmax(logits(64, order=ORDER)), atol=0.02)
    assert len(steps) == 7


def test_a_successor_in_another_form_comes_behind_a_plain_contract(store: Store, tmp_path: Path) -> None:
    old = predecessor(store, tmp_path, "pixels")
    for form in ("uint8_nhwc", "probabilities", "normalised"):
        new = adopt("onnx", store=store, checkpoint=write_form(form, tmp_path / "n.onnx"), labels=ORDER, **FORMS[form])
        bundle, _ = adapted_to(old, new, store)
        given_NCHW = PIXELS_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
        columns = [ORDER.index(label) for label in LABELS]
        answer, expected = ask(bundle, given_NCHW), ask(old, given_NCHW)[:, columns]
        np.testing.assert_allclose(softmax(answer), softmax(expected), atol=2e-5)


def test_more_labels_are_left_out_only_where_that_is_stated(store: Store, tmp_path: Path) -> None:
    two = replace(images(), labels=LABELS[:2], samples=tuple(s for s in images().samples if s.target < 2))
    path = write_graph(tiny(num_classes=2).eval(), tmp_path / "two.onnx")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    with_softmax(model)
    onnx.save(model, path)
    old = adopt("onnx", store=store, checkpoint=path, labels=LABELS[:2], kwargs={"input": "pixels"})
    new = successor(store, tmp_path)
    with pytest.raises(InputRefused, match=r"service\.drop_labels=\[triangle\]"):
        adapt_contract(new, old, two, store=store)
    with pytest.raises(UsageError, match="the model in service answers it"):
        adapt_contract(new, old, two, store=store, drop_labels=["circle"])
    found = adapt_contract(new, old, two, store=store, drop_labels=["triangle"])
    assert "labels left out: triangle" in found.details["steps"]
    given_NCHW = PIXELS_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(ask(found.bundle, given_NCHW), softmax(logits()[:, :2]), atol=2e-5)


def test_a_missing_label_is_refused_and_no_bundle_appears(store: Store, tmp_path: Path) -> None:
    old = predecessor(store, tmp_path, "pixels", labels=("circle", "square", "star"))
    new = successor(store, tmp_path)
    held = store.digests()
    with pytest.raises(InputRefused, match="does not know star"):
        adapt_contract(new, old, images(), store=store, drop_labels=["triangle"])
    assert store.digests() == held


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("features", r"outputs that callers may read are 'logits' \(logits\), 'embedding' \(features\)"),
        ("range", r"pixels in the range \[0.0, 1.0\]"),
        ("ids", "which is not one row of scores"),
        ("no graph", "has no ONNX graph"),
    ],
)
def test_what_cannot_be_mapped_is_named_and_stays_breaking(name: str, reason: str, store: Store, tmp_path: Path) -> None:
    contract = pixel_contract(PREPROCESSING, 3)
    (taken,), (scores,) = contract.inputs, contract.outputs
    taken, scores = replace(taken, name="x"), scores
    changed = {
        "features": Contract((taken,), (scores, TensorSpec("embedding", "float32", ("batch", 32), "NK", "features"))),
        "range": Contract((replace(taken, value_range=(0.0, 1.0)),), (scores,)),
        "ids": Contract((taken,), (replace(scores, dtype="int64", dims=("batch",), layout=""),)),
        "no graph": Contract((taken,), (scores,)),
    }[name]
    manifest = Manifest(Architecture("onnx"), LABELS, PREPROCESSING, changed, lineage("adopt"))
    old = store.add(manifest, files={ONNX: write_graph(trained(num_epochs=0), tmp_path / "old.onnx")})
    new = successor(store, tmp_path) if name != "no graph" else stored(store, trained(num_epochs=1, seed=1))
    found = adapt_contract(new, old, images(), store=store)
    assert found.bundle == new
    assert found.details["steps"] == []
    (said,) = found.details["refused"]
    assert re.search(reason, said)


def test_a_compatible_candidate_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    old, new = (successor(store, tmp_path, size_px=size) for size in (32, 64))
    found = adapt_contract(new, old, images(), store=store)
    assert found.bundle == new
    assert {difference["severity"] for difference in found.details["before"]} == {"compatible"}


def wrong(model: onnx.ModelProto, fault: str) -> onnx.ModelProto:
    """The adapter with one fault in it."""
    for tensor in model.graph.initializer:
        if fault == "permutation" and tensor.name.startswith("adapter/answer/") and tensor.data_type == TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1), tensor.name))
    for node in model.graph.node:
        if fault == "layout" and node.op_type == "Transpose" and node.name.startswith("adapter/"):
            node.attribute[0].CopyFrom(helper.make_attribute("perm", [0, 3, 2, 1]))
        if fault == "softmax" and node.op_type == "Softmax" and node.name.startswith("adapter/"):
            node.op_type = "Sigmoid"
            del node.attribute[:]
    return model


@pytest.mark.parametrize("fault", ["permutation", "layout", "softmax"])
def test_a_wrong_adapter_is_caught_by_parity(fault: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"of": with_softmax} if fault == "softmax" else {}
    old = predecessor(store, tmp_path, "uint8_nhwc", labels=ORDER, **of)
    new = successor(store, tmp_path)
    bundle, _ = adapted_to(old, new, store)
    given_NCHW = PIXELS_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
    path = tmp_path / "wrong.onnx"
    onnx.save(wrong(onnx.load(bundle.file(ONNX)), fault), path)
    report = adapter_parity(path, new, old, given_NCHW)
    assert report.verdict == "fail"
    assert report.value("error_ratio.max") > 1000
    held = store.digests()
    right = adaptation.compose_adapter

    def compose(*args: Any, **rest: Any) -> Any:
        model, steps = right(*args, **rest)
        return wrong(model, fault), steps

    monkeypatch.setattr(adaptation, "compose_adapter", compose)
    with pytest.raises(CheckFailed, match="answers otherwise than by itself"):
        adapt_contract(new, old, images(), store=store)
    assert store.digests() == held
    assert store.reports(new.digest)["parity.failed"].verdict == "fail"
