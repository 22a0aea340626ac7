"""Where old and new look, as pictures: each model's class activation map over the image as that model sees it."""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from toolkit.bundle import Preprocessing
from toolkit.data import ImageSet, render
from toolkit.errors import ToolkitError

SIDE_PX = 160
SHOWN = {"negative": 8, "positive": 4, "agreement": 4}
TITLES = {"negative": "Was right, now wrong", "positive": "Was wrong, now right", "agreement": "Both right"}


def overlays(
    attributions: Mapping[str, Any], images: ImageSet | None, preprocessing: Mapping[str, Preprocessing]
) -> list[dict[str, Any]]:
    """One entry a group of images: `title` and `cards` of key, correlation and a picture (data URI) a side.

    Images that cannot be read any more are left out, and groups without any.
    """
    if images is None or "maps" not in attributions:
        return []
    samples = {sample.key: sample for sample in images.samples}
    groups = []
    for kind, most in SHOWN.items():
        wanted = [(key, found) for key, found in attributions["maps"].items() if found["kind"] == kind and key in samples]
        cards = []
        for key, found in wanted[:most]:
            pictures = {side: _overlay(samples[key].source, found[side], spec) for side, spec in preprocessing.items()}
            if None not in pictures.values():
                cards.append({"key": key, "truth": images.labels[samples[key].target], **found, **pictures})
        if cards:
            groups.append({"title": TITLES[kind], "cards": cards})
    return groups


def _overlay(source: Any, grid: list[list[int]], spec: Preprocessing) -> str | None:
    """The map (values 0..99) as colour over the image in grey, framed as `spec` frames it."""
    try:
        pixels_HWC = render(source, replace(spec, size_px=(SIDE_PX, SIDE_PX), interpolation="bicubic"))
    except (ToolkitError, OSError):
        return None
    grey_HW1 = pixels_HWC.mean(axis=2, keepdims=True) / 255
    heat = Image.fromarray((np.array(grid) * 255 / 99).clip(0, 255).astype(np.uint8))
    heat_HW = np.asarray(heat.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)) / 255
    colour_HWC = matplotlib.colormaps["inferno"](heat_HW)[..., :3]
    share_HW1 = 0.65 * heat_HW[..., None]
    blended = ((1 - share_HW1) * grey_HW1 + share_HW1 * colour_HWC) * 255
    stream = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(stream, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
