"""Preprocessing inside a graph sees what training saw, for every filter, framing and size."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image, ImageFilter

from toolkit.backends.graph_contract import require_contract
from toolkit.backends.graph_files import read_graph
from toolkit.backends.pixel_front import front_part, has_front, model_part, prepend_preprocessing
from toolkit.backends.run_onnx import open_session
from toolkit.bundle import Preprocessing
from toolkit.checks.preprocessing_parity import PixelLimits
from toolkit.data import render
from toolkit.errors import InputRefused
from toolkit.models import pixel_contract, uint8_contract

SIZES = ((64, 64), (120, 90), (37, 40), (90, 250), (1, 30), (48, 56))
LABELS = ("a", "b", "c")


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth noise with a hard-edged black and white block: what over- and undershoots."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    pixels[: height // 5] = 0
    return pixels


def plain_graph(path: Path, spec: Preprocessing) -> Path:
    """A graph whose logits are the means of its pixels' channels."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    taken = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", spec.num_channels, *spec.size_px])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", spec.num_channels])
    model = helper.make_model(
        helper.make_graph(nodes, "model", [taken], [given]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    notes = {"preprocessing": {"size_px": list(spec.size_px)}, "labels": list(LABELS[: spec.num_channels])}
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_graph_resizes_and_crops_as_training_does(tmp_path: Path, interpolation: str, antialias: bool) -> None:
    if interpolation == "lanczos" and not antialias:
        pytest.skip("exists with antialias only")
    for (resize, fraction), size_px in itertools.product((("squash", 1.0), ("crop", 0.875)), ((48, 56), (64, 64))):
        spec = Preprocessing(size_px, resize, fraction, interpolation, antialias)  # pyright: ignore[reportArgumentType]
        path = plain_graph(tmp_path / "model.onnx", spec)
        prepend_preprocessing(path, spec)
        onnx.checker.check_model(str(path), full_check=True)
        session = open_session(front_part(path), threads=1)
        for image in (picture(*size) for size in SIZES):
            inside = session.run(None, {"images": image[None]})[0][0].transpose(1, 2, 0)
            apart = np.abs(inside - render(image, spec))
            assert apart.mean() <= (0.0 if interpolation == "nearest" else 0.3), (size_px, resize, image.shape)
            assert inside.min() >= 0
            assert inside.max() <= 255
            assert (inside == inside.round()).all()


@pytest.mark.parametrize(("shrunk", "wrong"), [("bilinear", "bicubic"), ("bicubic", "lanczos"), ("lanczos", "bicubic")])
def test_the_default_limit_lies_between_rounding_and_the_nearest_other_filter(tmp_path: Path, shrunk: str, wrong: str) -> None:
    spec = Preprocessing((112, 112), interpolation=shrunk)  # pyright: ignore[reportArgumentType]
    other = replace(spec, interpolation=wrong)  # pyright: ignore[reportArgumentType]
    images = [picture(300, 300), picture(150, 400), picture(260, 130)]

    def worst(inside: Preprocessing) -> float:
        path = plain_graph(tmp_path / "model.onnx", spec)
        prepend_preprocessing(path, inside)
        session = open_session(front_part(path), threads=1)
        made = [session.run(None, {"images": image[None]})[0][0].transpose(1, 2, 0) for image in images]
        return max(float(np.abs(pixels - render(image, spec)).mean()) for pixels, image in zip(made, images, strict=True))

    assert worst(spec) < PixelLimits().max_mean_levels < worst(other)


def test_a_batch_is_its_images_one_by_one_and_grey_models_take_one_channel(tmp_path: Path) -> None:
    spec = Preprocessing((40, 40), colour="L", mean=(0.5,), std=(0.5,))
    path = plain_graph(tmp_path / "model.onnx", spec)
    prepend_preprocessing(path, spec)
    session = open_session(path, threads=1)
    images = np.stack([picture(70, 50, seed=seed)[:, :, :1] for seed in range(5)])
    together = session.run(None, {"images": images})[0]
    alone = np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_the_model_behind_is_the_graph_that_was_there(tmp_path: Path) -> None:
    spec = Preprocessing((40, 40))
    path = plain_graph(tmp_path / "model.onnx", spec)
    before = open_session(path.read_bytes(), threads=1)
    assert not has_front(read_graph(path))
    prepend_preprocessing(path, spec)
    assert has_front(read_graph(path))
    behind = model_part(path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 40, 40)).astype(np.float32)
    after = open_session(behind, threads=1)
    np.testing.assert_array_equal(after.run(None, {"images": pixels})[0], before.run(None, {"images": pixels})[0])


def test_a_graph_with_its_tensors_elsewhere_is_refused(tmp_path: Path) -> None:
    spec = Preprocessing((40, 40))
    model = onnx.load(plain_graph(tmp_path / "model.onnx", spec))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2000, np.float32), "unused"))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    content = (tmp_path / "model.onnx").read_bytes()
    with pytest.raises(InputRefused, match="contract=tensor"):
        prepend_preprocessing(tmp_path / "model.onnx", spec)
    assert (tmp_path / "model.onnx").read_bytes() == content


@pytest.mark.parametrize("contract", ["tensor", "pixels"])
def test_a_graph_that_keeps_its_contract_passes_and_every_breach_is_named(tmp_path: Path, contract: str) -> None:
    spec = Preprocessing((40, 40))
    path = plain_graph(tmp_path / "model.onnx", spec)
    promised = pixel_contract(spec, 3)
    if contract == "pixels":
        prepend_preprocessing(path, spec)
        promised = uint8_contract(spec, 3)
    require_contract(path, promised, LABELS)
    sound = path.read_bytes()

    def breach(change, words: str, labels: tuple[str, ...] = LABELS) -> None:
        model = onnx.load_model_from_string(sound)
        change(model.graph)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputRefused, match=words):
            require_contract(path, promised, labels)

    def renamed(graph: onnx.GraphProto) -> None:
        graph.output[0].name = "scores"

    def retyped(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    def baked(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    def widened(graph: onnx.GraphProto) -> None:
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4

    breach(renamed, "outputs are scores")
    breach(retyped, "float16")
    breach(baked, r"dimensions \[1")
    breach(widened, r"\['batch', 4\]")
    breach(lambda graph: None, "labels", LABELS[::-1])
