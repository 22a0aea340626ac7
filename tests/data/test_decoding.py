"""Awkward files, as they arrive: each becomes the right picture or is refused by name."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from toolkit.data.decoding import MAX_PIXELS, decode
from toolkit.errors import InputRefused


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_alpha_is_dropped_and_the_colours_stay(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.full((*photo.shape[:2], 1), 7, dtype=np.uint8)
    Image.fromarray(np.concatenate((photo, alpha), axis=2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(np.array(decode(tmp_path / "rgba.png")), photo)


def test_a_palette_becomes_its_colours_even_with_transparency_in_bytes(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png", transparency=b"\x00\x80\xff")
    decoded = np.array(decode(tmp_path / "palette.png"))
    assert decoded.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "L"), ("1", "L"), ("LA", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("RGB", "RGB")]
)
def test_every_8_bit_mode_becomes_grey_or_rgb(tmp_path: Path, photo: np.ndarray, mode: str, expected: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.fromarray(photo).convert(mode).save(path)
    assert decode(path).mode == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    turns = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    stored = turns[orientation](photo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.array(decode(tmp_path / "turned.png")), photo)


def test_damaged_exif_does_not_lose_a_sound_picture(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "odd.jpg", quality=95, exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert decode(tmp_path / "odd.jpg").size == (60, 40)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(InputRefused, match=rf"half\.{suffix} cannot be decoded"):
        decode(path)


def test_truncated_files_are_refused_whatever_other_packages_set(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with pytest.raises(InputRefused, match=r"half\.jpg cannot be decoded"):
            decode(tmp_path / "half.jpg")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize(("suffix", "form"), [("gif", "GIF"), ("jpg", "MPO"), ("png", "PNG"), ("tif", "TIFF")])
def test_of_several_frames_the_first_is_the_picture(tmp_path: Path, suffix: str, form: str) -> None:
    first, second = Image.new("L", (16, 16), 20), Image.new("L", (16, 16), 200)
    first.save(tmp_path / f"a.{suffix}", format=form, save_all=True, append_images=[second])
    assert np.array(decode(tmp_path / f"a.{suffix}")).mean() == pytest.approx(20, abs=3)


def test_empty_missing_and_garbage_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    for name, reason in (("empty.jpg", "is empty"), ("text.png", "cannot be decoded"), ("gone.png", "cannot be read")):
        with pytest.raises(InputRefused, match=rf"{name} {reason}"):
            decode(tmp_path / name)


@pytest.mark.parametrize("form", ["grey_png", "rgb_png", "grey_tiff", "float_tiff"])
def test_more_than_8_bits_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"{form}.{'png' if form.endswith('png') else 'tif'}"
    if form == "rgb_png":  # PIL cannot write one: 2x1 pixels, 16 bits, colour type 2
        body = zlib.compress(b"\0" + bytes(range(12)))
        parts = ((b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
        chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    else:
        dtype = np.float32 if form == "float_tiff" else np.uint16
        Image.fromarray(np.arange(16, dtype=dtype).reshape(4, 4) * 3000).save(path)
    with pytest.raises(InputRefused, match=r"more than 8 bits a channel.*convert it to 8-bit"):
        decode(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with pytest.raises(InputRefused, match=r"bomb\.png has more than 89 million pixels"):
        decode(tmp_path / "bomb.png")


def test_postscript_is_never_handed_to_an_interpreter(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(InputRefused, match="cannot be decoded"):
        decode(tmp_path / "page.png")


def test_no_flipped_byte_of_a_png_does_worse_than_a_refusal() -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(whole, format="PNG")
    content = whole.getvalue()
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        with contextlib.suppress(InputRefused):
            assert decode(bytes(damaged)).mode in ("L", "RGB")


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 3), (5, 4, 4)])
def test_arrays_are_pictures(shape: tuple[int, ...]) -> None:
    assert decode(np.zeros(shape, dtype=np.uint8)).size == (4, 5)


@pytest.mark.parametrize("array", [np.zeros((5, 4), np.float32), np.zeros((5, 4, 5), np.uint8), np.zeros(5, np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputRefused, match="not an image"):
        decode(array)
