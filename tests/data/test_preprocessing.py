"""Rendering agrees with what checkpoints were trained on; normalising is exact and exports."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from toolkit.bundle import Preprocessing
from toolkit.data import Normalise, render
from toolkit.errors import UsageError


def _grey(**fields: object) -> Preprocessing:
    return Preprocessing(size_px=(8, 8), colour="L", mean=(0.5,), std=(0.25,), **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(300, 300), (500, 375), (375, 500), (41, 97), (7, 9)])
@pytest.mark.parametrize(("fraction", "resize_px"), [(0.875, 73), (1.0, 64), (64 / 68, 68)])
def test_crop_equals_torchvision(size: tuple[int, int], fraction: float, resize_px: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = v2.Compose([v2.Resize(resize_px, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(64)])(image)
    spec = Preprocessing(size_px=(64, 64), resize="crop", crop_fraction=fraction, interpolation="bicubic")
    np.testing.assert_array_equal(render(np.array(image), spec), np.array(expected))


def test_squash_equals_pil(photo: np.ndarray) -> None:
    expected = Image.fromarray(photo).resize((20, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(render(photo, Preprocessing(size_px=(10, 20))), np.array(expected))


@pytest.mark.parametrize("size_px", [(16, 48), (48, 16), (64, 64), (1, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_the_size_is_the_one_asked_for(photo: np.ndarray, size_px: tuple[int, int], resize: str, fraction: float) -> None:
    spec = Preprocessing(size_px=size_px, resize=resize, crop_fraction=fraction)  # pyright: ignore[reportArgumentType]
    assert render(photo, spec).shape == (*size_px, 3)
    assert render(np.ascontiguousarray(photo.transpose(1, 0, 2)), spec).shape == (*size_px, 3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_without_antialias_equals_torch(photo: np.ndarray, mode: str) -> None:
    pixels_1CHW = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(pixels_1CHW, size=(9, 11), mode=mode).round().clamp(0, 255)[0].permute(1, 2, 0)
    spec = Preprocessing(size_px=(9, 11), antialias=False, interpolation=mode)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(render(photo, spec), expected.to(torch.uint8).numpy())
    assert (render(photo, spec) != render(photo, Preprocessing(size_px=(9, 11)))).any()


def test_lanczos_without_antialias_is_refused(photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match="lanczos"):
        render(photo, Preprocessing(size_px=(9, 11), antialias=False, interpolation="lanczos"))


def test_grey_files_and_grey_models_mix(photo: np.ndarray) -> None:
    grey = np.array(Image.fromarray(photo).convert("L"))
    as_rgb = render(grey, Preprocessing(size_px=(8, 8)))
    assert (as_rgb == as_rgb[:, :, :1]).all()
    assert render(photo, _grey()).shape == (8, 8, 1)
    np.testing.assert_array_equal(render(photo, _grey()), render(grey, _grey()))
    assert render(grey, _grey(antialias=False)).shape == (8, 8, 1)


def test_lists_from_a_config_render_alike(photo: np.ndarray) -> None:
    spec = Preprocessing(size_px=[8, 9], mean=[0.5] * 3, std=[0.5] * 3, value_range=[0, 1])  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(render(photo, spec), render(photo, Preprocessing(size_px=(8, 9))))
    assert Normalise(spec)(torch.zeros(1, 3, 8, 9)).unique().tolist() == [-1.0]


def test_a_file_its_bytes_and_its_pixels_render_alike(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    spec = Preprocessing(size_px=(20, 20))
    for source in (tmp_path / "photo.png", (tmp_path / "photo.png").read_bytes()):
        np.testing.assert_array_equal(render(source, spec), render(photo, spec))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_normalise_is_the_formula(value_range: tuple[float, float]) -> None:
    spec = Preprocessing(size_px=(4, 4), value_range=value_range)
    pixels_NCHW = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    low, high = value_range
    mean_C11, std_C11 = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (spec.mean, spec.std))
    expected = (pixels_NCHW.double() / 255 * (high - low) + low - mean_C11) / std_C11
    for given in (pixels_NCHW, pixels_NCHW.float()):
        normalised = Normalise(spec)(given)
        assert normalised.dtype == torch.float32
        torch.testing.assert_close(normalised.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_normalise_follows_its_module(dtype: torch.dtype) -> None:
    module = Normalise(Preprocessing(size_px=(4, 4))).to(dtype)
    assert module(torch.zeros(1, 3, 4, 4)).dtype == dtype
    assert not module.state_dict()


def test_normalise_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), got \(2, 1, 4, 4\)"):
        Normalise(Preprocessing(size_px=(4, 4)))(torch.zeros(2, 1, 4, 4))


def test_normalise_exports(tmp_path: Path) -> None:
    module = Normalise(Preprocessing(size_px=(4, 4))).eval()
    pixels_NCHW = torch.randint(0, 256, (2, 3, 4, 4)).float()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module, (pixels_NCHW,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"], verbose=False
    )
    assert program is not None
    program.save(tmp_path / "normalise.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "normalise.onnx", providers=["CPUExecutionProvider"])
    pixels_7CHW = torch.randint(0, 256, (7, 3, 4, 4)).float()
    (found,) = session.run(None, {"images": pixels_7CHW.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(pixels_7CHW), rtol=1e-6, atol=1e-6)
