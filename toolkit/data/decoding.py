"""An image file becomes an upright 8-bit picture, or is refused with a reason.

PIL decodes, because it survives damaged files (torchvision's PNG decoder crashes the process on a flipped bit). The
picture is really loaded: a header that verifies says nothing about truncated data. Only raster formats are opened (PIL
would hand PostScript to an external interpreter), and the size is checked before any pixel is unpacked. EXIF orientation is
applied here, for training and serving alike. 16-bit data is refused rather than cut to its high byte or clipped.
Transparency is dropped (the colours under it show), as `convert("RGB")` does everywhere else.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from toolkit.data.stored import Source, Stored
from toolkit.errors import InputRefused

Image.init()  # registers the formats this build of PIL knows; an unregistered name in `formats` would be a KeyError
FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN
)
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2")
)
MAX_PIXELS = 89_478_485  # PIL's own warning level: a quarter of a gibibyte of RGB pixels
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: Source | bytes) -> Image.Image:
    """The upright picture in mode `L` or `RGB` from a file, a file's bytes or uint8 pixels (HW or HWC, 1 to 4 channels).

    Of an animation, the first frame. Raises `InputRefused`, naming the source, for anything that is not a whole 8-bit
    image of at most `MAX_PIXELS` pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else _read(source)
    if not content:
        raise InputRefused(f"{name} is empty (0 bytes): restore the file or remove it from the data.")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages switch it on for the whole process, and half pictures pass
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_8_bit(image, content, name)
            image.load()
            return _plain(_upright(image), name)
    except InputRefused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on damaged files: one border, one typed error
        raise InputRefused(
            f"{name} cannot be decoded as an image ({type(error).__name__}: {_first_line(error)}). "
            "Restore the file or remove it from the data."
        ) from error


def _read(path: Path | Stored) -> bytes:
    if isinstance(path, Stored):
        return path.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputRefused(
            f"{path} cannot be read ({error.strerror or error}). Restore the file or remove it from the data."
        ) from error


def _require_8_bit(image: Image.Image, content: bytes, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    deep_png = image.format == "PNG" and len(content) > 24 and content[24] == 16
    deep_tile = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if deep_png or deep_tile or image.mode.startswith(("I", "F")):
        raise InputRefused(
            f"{name} has more than 8 bits a channel (mode {image.mode}): convert it to 8-bit, choosing yourself how to scale "
            "its values, because a model trained on one scaling fails silently on another."
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF around sound pixels: shown as stored, as every viewer does
        orientation = 1
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _plain(image: Image.Image, name: str) -> Image.Image:
    image.info.pop("transparency", None)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB")
    raise InputRefused(f"{name} has the unsupported pixel mode {image.mode}: save it as 8-bit greyscale or RGB.")


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4)):
        raise InputRefused(
            f"pixels of type {pixels.dtype} and shape {pixels.shape} are not an image: give uint8 (height, width) or "
            "(height, width, channels) with 1 to 4 channels."
        )
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return _plain(Image.fromarray(np.ascontiguousarray(pixels)), "array")


def _too_large(name: str) -> InputRefused:
    return InputRefused(
        f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down or remove it from the data."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
