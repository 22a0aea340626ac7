"""Lower precisions beside the float32 graph: shipped where they hold, left out with the reason where they do not."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

import toolkit.backends.half as half
import toolkit.checks.variants as variants
import toolkit.stages.export as stage
from tests.backends.fitted import FAMILIES, PREPROCESSING, Residual, bundled, drawn, fitted, pixels
from toolkit.backends import ExportFacts, open_runner
from toolkit.backends.quantise import Calibration, write_int8
from toolkit.backends.write import facts as facts_of
from toolkit.bundle import GRAPHS, ONNX, Bundle, Store
from toolkit.checks.parity import ParityLimits
from toolkit.checks.parity_precision import PrecisionLimits
from toolkit.checks.variants import Variants
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed, register
from toolkit.release.page import render_page
from toolkit.release.tables import open_console, show_report
from toolkit.stages.export import export

LIMITS = ParityLimits(batches=[1, 5])
PRECISIONS = ("fp32", "fp16", "int8")
# The fitted weights and int8 kernels differ between processors: 150 images decide a margin of 0.12, not of 0.06.
MARGIN = 0.12
VARIANTS = Variants(limits=PrecisionLimits(margin=MARGIN))


class Loud(Residual):
    """The residual net, with values of some hundred thousands on the way."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x_NCHW = (self.stem(images_NCHW) * 3e5).relu() / 3e5
        x_NCHW = (x_NCHW + self.one(x_NCHW)).relu()
        x_NCHW = (self.short(x_NCHW) + self.two(x_NCHW)).relu()
        return self.head(torch.cat([x_NCHW.mean((2, 3)), x_NCHW.amax((2, 3))], 1))


register("tests/loud", Loud, PREPROCESSING)


def exported(store: Store, family: str, **settings: Any) -> Bundle:
    settings = {"precisions": PRECISIONS, "variants": VARIANTS, "limits": LIMITS, "num_golden": 2, "data": drawn()} | settings
    return export(bundled(store, family, settings.pop("deployed", None)), store=store, **settings)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Bundle]]:
    store = Store(tmp_path_factory.mktemp("precisions") / "store")
    return store, {family: exported(store, family) for family in FAMILIES}


@pytest.fixture
def written(shared: tuple[Store, dict[str, Bundle]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the residual net find the float32 graph that was written before: tracing takes most of their time."""

    def copy(_deployed: Any, path: Path, **_rest: Any) -> ExportFacts:
        shutil.copy(shared[1]["residual"].file(ONNX), path)
        return facts_of(path, method="folded", seconds={})

    monkeypatch.setattr(stage, "write_onnx", copy)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_precision_is_shipped_and_drops_in(shared: tuple[Store, dict[str, Bundle]], family: str) -> None:
    store, bundles = shared
    bundle = bundles[family]
    images_NCHW, targets_N = pixels("test")
    answers = {precision: open_runner(bundle, kind="onnx", precision=precision)(images_NCHW) for precision in PRECISIONS}
    accuracy = {precision: (logits_NK.argmax(1) == targets_N).mean() for precision, logits_NK in answers.items()}
    assert accuracy["fp32"] > 0.7
    for precision in PRECISIONS:
        assert answers[precision].dtype == np.float32
        assert accuracy[precision] == pytest.approx(accuracy["fp32"], abs=MARGIN / 2)
        session = onnxruntime.InferenceSession(bundle.file(GRAPHS[precision]), providers=["CPUExecutionProvider"])
        for found, spec in (
            (session.get_inputs(), bundle.manifest.contract.inputs),
            (session.get_outputs(), bundle.manifest.contract.outputs),
        ):
            assert [(v.name, tuple(v.shape), v.type) for v in found] == [(s.name, s.dims, "tensor(float)") for s in spec]
        properties = {entry.key: entry.value for entry in onnx.load(bundle.file(GRAPHS[precision])).metadata_props}
        assert properties["precision"] == precision
        assert {"labels", "preprocessing", "parent"} <= set(properties)
    for precision in ("fp16", "int8"):
        report = store.reports(bundle.digest)[f"parity.{precision}"]
        assert report.verdict == "pass"
        assert report.value("accuracy.candidate") == pytest.approx(accuracy[precision], abs=1e-9)
        assert report.value("accuracy.difference") == pytest.approx(accuracy[precision] - accuracy["fp32"], abs=1e-9)
    assert store.reports(bundle.digest)["parity.fp16"].value("size.ratio") < 0.8


def test_the_graphs_compute_in_the_precision_they_are_named_after(shared: tuple[Store, dict[str, Bundle]]) -> None:
    for bundle in shared[1].values():
        kinds = {t.data_type for t in onnx.load(bundle.file(GRAPHS["fp16"])).graph.initializer}
        assert onnx.TensorProto.FLOAT not in kinds
        quantised = onnx.load(bundle.file(GRAPHS["int8"])).graph
        scales = {node.input[1] for node in quantised.node if node.op_type == "DequantizeLinear"}
        arrays = {t.name: numpy_helper.to_array(t) for t in quantised.initializer}
        assert max(arrays[name].size for name in scales) >= 16  # one for each output channel
        assert not [node for node in quantised.node if node.op_type == "BatchNormalization"]


def test_people_see_what_each_precision_costs(
    shared: tuple[Store, dict[str, Bundle]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, bundles = shared
    bundle = bundles["depthwise"]
    page = render_page(store, bundle, baseline=None, images=None, alias="production")
    assert "Parity in fp16: is it still the model?" in page
    assert "Parity in int8: does it decide alike?" in page
    show_report(store.reports(bundle.digest)["parity.int8"], open_console())
    printed = capsys.readouterr().out
    assert "Parity in int8: limits" in printed
    assert "Accuracy, change" in printed
    assert "Same answer at every optimiser level" in printed


def test_equal_exports_have_equal_digests(shared: tuple[Store, dict[str, Bundle]], tmp_path: Path) -> None:
    assert exported(Store(tmp_path / "other"), "depthwise") == replace(
        shared[1]["depthwise"], path=tmp_path / "other" / "bundles" / shared[1]["depthwise"].digest
    )


def test_the_same_export_is_found_and_another_precision_is_another(
    shared: tuple[Store, dict[str, Bundle]], written: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bundles = shared
    plain = exported(store, "residual", precisions=["fp32"])
    assert plain.digest != bundles["residual"].digest
    assert {name for name in GRAPHS.values() if plain.has(name)} == {ONNX}
    monkeypatch.setattr(stage, "write_onnx", lambda *_args, **_rest: pytest.fail("it was exported again"))
    assert exported(store, "residual", precisions=["int8", "fp16"]) == bundles["residual"]
    (store.root / "reports" / bundles["residual"].digest / "parity.int8.json").rename(store.root / "elsewhere")
    with pytest.raises(pytest.fail.Exception, match="again"):
        exported(store, "residual")
    (store.root / "elsewhere").rename(store.root / "reports" / bundles["residual"].digest / "parity.int8.json")


def test_values_beyond_float16_stay_in_float32_and_parity_holds(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = Deployed(Loud(), PREPROCESSING)
    deployed.load_state_dict(fitted("residual").state_dict())
    bundle = exported(store, "loud", deployed=deployed.eval(), precisions=["fp16"])
    report = store.reports(bundle.digest)["parity.fp16"]
    assert report.verdict == "pass"
    assert report.value("half_largest") < 65504
    assert report.value("nodes_kept") == len(report.details["kept_fp32"]) > 1
    assert any("reaches" in entry["reason"] for entry in report.details["kept_fp32"])
    assert bundle.has(GRAPHS["fp16"])

    monkeypatch.setattr(half, "risky_nodes", lambda *_args: {})
    monkeypatch.setattr(stage, "write_onnx", lambda _deployed, path, **_rest: _copied(bundle, path))
    with np.errstate(over="ignore"), caplog.at_level(logging.WARNING):
        unguarded = exported(store, "loud", deployed=deployed, precisions=["fp16"], num_golden=3)
    assert not unguarded.has(GRAPHS["fp16"])
    report = store.reports(unguarded.digest)["parity.fp16"]
    assert report.verdict == "fail"
    assert report.value("half_largest") > 65504
    assert "The graph in fp16 is not shipped: finite is 0, must be == 1. half_largest is" in caplog.text


def _copied(bundle: Bundle, path: Path) -> ExportFacts:
    shutil.copy(bundle.file(ONNX), path)
    return facts_of(path, method="folded", seconds={})


def spoilt(spoil: Callable[[onnx.ModelProto], None]) -> Callable[..., Any]:
    """The real quantiser, followed by a fault in the file it wrote."""

    def write(source: Path, path: Path, images_NCHW: np.ndarray, **rest: Any) -> Any:
        found = write_int8(source, path, images_NCHW, **rest)
        model = onnx.load(path)
        spoil(model)
        onnx.save(model, path)
        return found

    return write


def destroy_scales(model: onnx.ModelProto) -> None:
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(30), tensor.name))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "destroyed scales": lambda patch: patch.setattr(variants, "write_int8", spoilt(destroy_scales)),
    "calibrated on the dark": lambda patch: patch.setattr(variants, "spread", lambda images_NCHW, number: images_NCHW * 0.02),
    "onnxruntime dies of it": lambda patch: patch.setattr(variants, "OPENS", "import os, signal; os.kill(os.getpid(), 11)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_int8_graph_is_left_out_and_float32_is_shipped(
    store: Store, written: None, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FAULTS[fault](monkeypatch)
    with caplog.at_level(logging.WARNING):
        bundle = exported(store, "residual", precisions=["int8"])
    assert bundle.has(ONNX)
    assert not bundle.has(GRAPHS["int8"])
    report = store.reports(bundle.digest)["parity.int8"]
    assert report.verdict == "fail"
    assert "The graph in int8 is not shipped: " in caplog.text
    assert ("crashes (signal 11)" in caplog.text) == (fault == "onnxruntime dies of it")
    assert store.reports(bundle.digest)["export"].details["precisions"]["int8"] in caplog.text
    assert store.reports(bundle.digest)["parity"].verdict == "pass"
    with pytest.raises(InputRefused, match=r"has no model\.int8\.onnx, its graph in int8 \(it holds fp32\)"):
        open_runner(bundle, kind="onnx", precision="int8")


def test_what_too_few_images_cannot_decide_is_not_shipped(
    store: Store, written: None, caplog: pytest.LogCaptureFixture
) -> None:
    strict = Variants(limits=PrecisionLimits(margin=0.001))
    with caplog.at_level(logging.WARNING):
        bundle = exported(store, "residual", precisions=["int8"], variants=strict)
    assert not bundle.has(GRAPHS["int8"])
    assert store.reports(bundle.digest)["parity.int8"].verdict == "undecided"
    assert "accuracy.difference is" in caplog.text
    assert "would" in caplog.text


def test_sensitive_layers_go_back_to_float32(store: Store) -> None:
    """One feature three thousand times louder than the others leaves them no steps, unless the head stays in float32."""
    deployed = fitted("transformer")
    with torch.no_grad():
        deployed.net.norm3.weight[0] *= 3000
        deployed.net.norm3.bias[0] *= 3000
        deployed.net.head.weight[:, [0, 16]] /= 3000
    bundle = exported(store, "transformer", deployed=deployed, precisions=["int8"])
    report = store.reports(bundle.digest)["parity.int8"]
    assert [attempt["holds"] for attempt in report.details["attempts"]] == [False, True]
    assert [entry["reason"] for entry in report.details["kept_fp32"]] == ["first layer", "last layer"]
    assert report.verdict == "pass"
    assert bundle.has(GRAPHS["int8"])


def test_what_cannot_be_quantised_is_skipped_with_the_reason(
    store: Store, written: None, caplog: pytest.LogCaptureFixture
) -> None:
    everything = [node.name for node in onnx.load(exported(store, "residual", precisions=[]).file(ONNX)).graph.node]
    products = [name for name in everything if "conv" in name.lower() or "linear" in name.lower()]
    assert len(products) == 5
    with caplog.at_level(logging.WARNING):
        bundle = exported(store, "residual", variants=replace(VARIANTS, int8=Calibration(keep_fp32=products)))
    assert "The graph in int8 is not shipped: no Conv, ConvTranspose, Gemm, MatMul is left to quantise" in caplog.text
    assert {name for name in GRAPHS.values() if bundle.has(name)} == {ONNX, GRAPHS["fp16"]}


def test_what_lower_precisions_need_is_asked_for_before_any_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "write_onnx", lambda *_args, **_rest: pytest.fail("work was done"))
    with pytest.raises(UsageError, match="Did you mean int8"):
        exported(store, "residual", precisions=["int-8"])
    data = drawn()
    without = replace(data, samples=tuple(sample for sample in data.samples if sample.split != "train"))
    with pytest.raises(InputRefused, match="0 training and 150 test images"):
        exported(store, "residual", data=without)
    renamed = replace(data, labels=("round", "square", "triangle"))
    with pytest.raises(InputRefused, match="data 'shapes' has round, square, triangle"):
        exported(store, "residual", data=renamed)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Calibration(method="kl"), "choose minmax, entropy, percentile"),  # pyright: ignore[reportArgumentType]
        (lambda: Calibration(num_images=0), "at least 1 image"),
        (lambda: Calibration(percentile=40), "more than 50"),
        (lambda: PrecisionLimits(margin=0), "margin is 0"),
        (lambda: PrecisionLimits(min_agreement=1.5), r"min_agreement is 1\.5"),
        (lambda: PrecisionLimits(max_half_share=1), "max_half_share is 1"),
        (lambda: PrecisionLimits(margin_reason=" "), "say why"),
        (lambda: Variants(max_test_images=3), "at least 10"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build()
