"""A graph with its preprocessing inside, from files of awkward kinds to the release."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import toolkit.checks.pixel_export
from tests.checks.planted import images, stored, trained
from toolkit.backends import open_runner, write_onnx
from toolkit.backends.pixel_front import prepend_preprocessing
from toolkit.bundle import Bundle, Preprocessing, Store
from toolkit.checks.preprocessing_parity import preprocessing_parity
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.cli import main
from toolkit.data import ImageSet, Sample, decoded, load_pixels, render
from toolkit.errors import CheckFailed, InputRefused, UsageError
from toolkit.models import uint8_contract
from toolkit.stages.evaluate import evaluate
from toolkit.stages.export import export
from toolkit.stages.gate import gate
from toolkit.stages.release import release

ROTATED = 6  # EXIF: to be shown turned by 90 degrees


def save(picture: Image.Image, kind: str, path: Path) -> Path:
    """The picture as a file of an awkward kind."""
    if kind == "grey":
        picture.convert("L").save(path := path.with_suffix(".png"))
    elif kind == "alpha":
        picture.putalpha(130)
        picture.save(path := path.with_suffix(".png"))
    elif kind == "palette":
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(path := path.with_suffix(".png"))
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = ROTATED
        picture.save(path := path.with_suffix(".jpg"), exif=exif, quality=95)
    else:
        picture.save(path := path.with_suffix(".png"))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """The drawn shapes as files: smaller and larger than the model's 32 px, not square, in every awkward kind."""
    folder, whole = tmp_path_factory.mktemp("files"), images()
    sizes, kinds = ((32, 32), (20, 26), (61, 90), (140, 70)), ("plain", "grey", "alpha", "palette", "rotated")
    chosen = [sample for sample in whole.samples if sample.split == "test"][:60]
    samples = []
    for index, sample in enumerate(chosen):
        height, width = sizes[index % len(sizes)]
        picture = Image.fromarray(sample.source).resize((width, height), Image.Resampling.BICUBIC)  # type: ignore[arg-type]
        path = save(picture, kinds[index % len(kinds)], folder / f"{index}")
        samples.append(Sample(key=path.name, source=path, target=sample.target, split="test", slice=sample.slice))
    return ImageSet("files", whole.labels, tuple(samples))


@pytest.fixture
def parent(store: Store) -> Bundle:
    return stored(store, trained(num_epochs=8))


def test_the_bundle_takes_files_as_they_are(parent: Bundle, store: Store, files: ImageSet) -> None:
    made = export(parent, store=store, data=files, contract="pixels")
    taken = made.manifest.contract.inputs[0]
    assert (taken.dtype, taken.layout, taken.dims) == ("uint8", "NHWC", ("batch", "height", "width", 3))
    report = store.reports(made.digest)["preprocessing"]
    assert report.verdict == "pass"
    assert report.details["num_awkward_images"] == 4
    assert (report.value("pixel_difference.mean") or 0) < 0.3
    session = onnxruntime.InferenceSession(made.file("model.onnx"))
    spec = made.manifest.preprocessing
    pixels = load_pixels(files, spec)
    expected_NK = open_runner(parent, kind="eager")(pixels.images_NCHW.numpy().astype(np.float32))
    answers_NK = np.concatenate([session.run(None, {"images": decoded(s.source, spec)[None]})[0] for s in files.samples])
    assert set(np.flatnonzero(answers_NK.argmax(1) != expected_NK.argmax(1))) <= set(report.details["ties"])
    np.testing.assert_allclose(answers_NK, expected_NK, atol=0.2 * np.abs(expected_NK).max())
    golden = load_file(made.file("golden.safetensors"))
    assert golden["images"].dtype == np.uint8
    np.testing.assert_allclose(session.run(None, {"images": golden["images"]})[0], golden["logits"], rtol=1e-3, atol=1e-3)
    assert export(parent, store=store, data=files, contract="pixels").digest == made.digest


def test_checks_see_the_same_model_behind_either_contract(
    parent: Bundle, store: Store, files: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = export(parent, store=store, data=files)
    whole = export(parent, store=store, data=files, contract="pixels")
    assert tensor.digest != whole.digest
    scores = [evaluate(bundle, store=store, data=files).value("accuracy") for bundle in (tensor, whole)]
    assert scores[0] == scores[1]
    limits = GateLimits({"accuracy": Rule("accuracy.difference", ">=", -0.01, reason="planted")})
    report = gate(whole, store=store, baseline=tensor, data=files, limits=limits, latency_rounds=10)
    assert (report.verdict, report.value("contract.breaking")) == ("pass", report.value("contract.breaking"))
    assert (report.value("contract.breaking") or 0) > 0  # callers hand over other arrays
    same = gate(whole, store=store, baseline=whole, data=files, limits=limits, latency_rounds=10)
    assert same.value("contract.breaking") == same.value("negative_flip_rate") == 0
    release(whole, store=store, output=tmp_path, required=["parity"])
    code = re.search(r"```python\n(.*?)```", (tmp_path / "MODEL_CARD.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "model.onnx").write_bytes(whole.file("model.onnx").read_bytes())
    picture = Image.open(files.samples[4].source)  # type: ignore[arg-type]
    picture.save(tmp_path / "image.png", exif=picture.getexif())
    (tmp_path / "card_code.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    outputs = runpy.run_path("card_code.py")["outputs"]
    pixels = render(tmp_path / "image.png", whole.manifest.preprocessing).transpose(2, 0, 1)[None].astype(np.float32)
    assert outputs[0].argmax() == open_runner(parent, kind="eager")(pixels)[0].argmax()


def test_another_filter_than_trainings_becomes_no_bundle(
    parent: Bundle, store: Store, files: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_antialias(path: Path, spec: Preprocessing) -> None:
        prepend_preprocessing(path, replace(spec, antialias=False))

    monkeypatch.setattr(toolkit.checks.pixel_export, "prepend_preprocessing", without_antialias)
    with pytest.raises(CheckFailed, match="grey levels"):
        export(parent, store=store, data=files, contract="pixels")
    assert store.digests() == [parent.digest]
    assert store.reports(parent.digest)["preprocessing.failed"].verdict == "fail"


def test_deep_files_and_unknown_contracts_are_refused(parent: Bundle, store: Store, files: ImageSet, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputRefused, match="8 bits"):
        decoded(tmp_path / "deep.png", parent.manifest.preprocessing)
    with pytest.raises(UsageError, match="pixels"):
        export(parent, store=store, data=files, contract="pixel")  # type: ignore[arg-type]


def test_the_command_line_exports_a_folder_of_files_in_every_precision(
    parent: Bundle, store: Store, files: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sample in files.samples:
        folder = tmp_path / "photos" / files.labels[sample.target]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sample.key).write_bytes(Path(sample.source).read_bytes())  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(
            [
                *("export", f"bundle={parent.digest}", f"store={store.root}", "data=folder", "data.root=photos"),
                *("contract=pixels", "precisions=[fp32,fp16]", "variants.max_test_images=40"),
            ]
        )
    assert done.value.code == 0
    made = next(bundle for bundle in store.bundles() if bundle.digest != parent.digest)
    image_HWC = decoded(files.samples[2].source, made.manifest.preprocessing)
    answers = {}
    for name in [name for name in made.manifest.files if name.endswith(".onnx")]:
        answers[name] = onnxruntime.InferenceSession(made.file(name)).run(None, {"images": image_HWC[None]})[0]
    assert "model.onnx" in answers
    for answer_NK in answers.values():
        np.testing.assert_allclose(answer_NK, answers["model.onnx"], atol=0.05 * np.abs(answers["model.onnx"]).max())


def test_a_changed_answer_counts_unless_it_was_a_tie(parent: Bundle, files: ImageSet, tmp_path: Path) -> None:
    spec = parent.manifest.preprocessing
    shown = [decoded(sample.source, spec) for sample in files.samples[:20]]

    class Bright(torch.nn.Module):
        """Two logits that part at a mean brightness of `threshold`."""

        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.threshold = torch.nn.Parameter(torch.tensor(threshold))

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            mean_N = images_NCHW.mean((1, 2, 3)) - self.threshold
            return torch.stack([mean_N, -mean_N], 1)

    means = sorted(render(image, spec).mean() for image in shown)
    threshold = float(means[10]) + 1e-7  # on the edge for one image
    path = tmp_path / "model.onnx"
    write_onnx(Bright(threshold), path, preprocessing=spec, labels=("a", "b"), fast=False)
    prepend_preprocessing(path, spec)
    report = preprocessing_parity(path, Bright(threshold), shown, preprocessing=spec, subject="0" * 64)
    assert report.value("decisions_changed") == 0
    other = preprocessing_parity(path, Bright(threshold + 30), shown, preprocessing=spec, subject="0" * 64)
    assert other.verdict == "fail"
    assert (other.value("decisions_changed") or 0) > 0


def test_a_graph_that_breaks_its_bundles_contract_is_not_opened(parent: Bundle, store: Store, files: ImageSet) -> None:
    made = export(parent, store=store, data=files)
    open_runner(made)
    graph = {"model.onnx": made.file("model.onnx")}
    permuted = store.add(replace(made.manifest, labels=made.manifest.labels[::-1], files={}), files=graph)
    with pytest.raises(InputRefused, match="contract: its labels"):
        open_runner(permuted, kind="onnx")
    contract = uint8_contract(made.manifest.preprocessing, 3)
    retyped = store.add(replace(made.manifest, contract=contract, files={}), files=graph)
    with pytest.raises(InputRefused, match="is float32, promised is uint8"):
        open_runner(retyped, kind="onnx")
