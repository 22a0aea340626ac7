"""Small pictures of images, embedded in the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from toolkit.bundle import Preprocessing
from toolkit.data import ImageSet, render
from toolkit.errors import ToolkitError

THUMBNAIL = Preprocessing(size_px=(176, 176), resize="crop", interpolation="bicubic")
MAX_SHOWN = {"negative": 30, "positive": 15}


def gallery(flips: Sequence[Mapping[str, Any]], images: ImageSet | None) -> list[dict[str, Any]]:
    """The flips to show, negative ones first: each entry of the gate's list with `picture`, a data URI or None.

    Without `images`, or where one cannot be read any more, the entry stays and its picture is left out.
    """
    sources = {sample.key: sample.source for sample in images.samples} if images is not None else {}
    shown = []
    for kind, most in MAX_SHOWN.items():
        for flip in [flip for flip in flips if flip["kind"] == kind][:most]:
            shown.append({**flip, "picture": thumbnail(sources[flip["key"]]) if flip["key"] in sources else None})
    return shown


def thumbnail(source: Any) -> str | None:
    """A small JPEG of the image as a data URI; None where it cannot be read."""
    try:
        pixels_HWC = render(source, THUMBNAIL)
    except (ToolkitError, OSError):
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
