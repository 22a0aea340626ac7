"""The program on the card runs, and answers what the toolkit answers, for every form in which services take images."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.migration.graph_forms import FORMS, write_form
from toolkit.backends import OnnxRunner, write_onnx
from toolkit.backends.adapted import AdaptedRunner
from toolkit.bundle import ONNX, Architecture, Manifest, Preprocessing, Store, lineage
from toolkit.data import render
from toolkit.models import Deployed, pixel_contract
from toolkit.release.card_code import running_code
from toolkit.stages.adopt import adopt


def called(code: str, folder: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, str]:
    """The outputs of the card's program, and what it prints, in a folder that holds the graph and one image."""
    shutil.copy(graph, folder / "model.onnx")
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (41, 57, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(folder / "image.png")
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, variables)
    return variables["outputs"], printed.getvalue().strip()


@pytest.mark.parametrize("form", FORMS)
def test_an_adopted_graph_is_called_as_its_contract_says(
    form: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["circle", "square", "triangle"]
    path = write_form(form, tmp_path / "net.onnx", num_epochs=1)
    bundle = adopt("onnx", store=store, checkpoint=path, labels=labels, **FORMS[form])
    manifest = bundle.manifest
    outputs, printed = called(running_code(manifest), tmp_path, bundle.file(ONNX), monkeypatch)
    runner = AdaptedRunner(bundle.file(ONNX), contract=manifest.contract, preprocessing=manifest.preprocessing)
    image_NCHW = render(tmp_path / "image.png", manifest.preprocessing).transpose(2, 0, 1)[None].astype(np.float32)
    expected_NK = runner(image_NCHW)
    found_NK = np.log(outputs) if form == "probabilities" else outputs
    assert np.allclose(found_NK[:1], expected_NK, atol=1e-4)
    assert printed == labels[int(expected_NK[0].argmax())]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((32, 32), resize="crop", crop_fraction=0.8),
        Preprocessing((32, 24), interpolation="bicubic", colour="L", mean=(0.5,), std=(0.2,)),
    ],
)
def test_an_exported_graph_is_called_as_its_preprocessing_says(
    preprocessing: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (height, width), channels = preprocessing.size_px, preprocessing.num_channels
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 2))
    path, labels = tmp_path / "net.onnx", ("cat", "dog")
    write_onnx(Deployed(net, preprocessing), path, preprocessing=preprocessing, labels=labels)
    manifest = Manifest(Architecture("mine"), labels, preprocessing, pixel_contract(preprocessing, 2), lineage("export"))
    outputs, printed = called(running_code(manifest), tmp_path, path, monkeypatch)
    image_NCHW = render(tmp_path / "image.png", preprocessing).transpose(2, 0, 1)[None].astype(np.float32)
    expected_NK = OnnxRunner(path)(image_NCHW)
    assert np.array_equal(outputs, expected_NK)
    assert printed == labels[int(expected_NK[0].argmax())]
