"""How to call a bundle's graph: the Python lines of the model card, by the graph's contract.

The lines use PIL where one resize says it all; otherwise the toolkit's own `render`, because a second hand-written version of a
crop rule is how served models come to see other pixels than trained ones.
"""

from toolkit.bundle import Manifest, Preprocessing, TensorSpec

IMPORTS = ("import numpy as np", "import onnxruntime")
PIL = ("import PIL.Image", "import PIL.ImageOps")
RENDER = ("from pathlib import Path", "from toolkit.bundle import Preprocessing", "from toolkit.data import render")


def running_words(manifest: Manifest) -> str:
    """What the graph takes, in a sentence."""
    taken = manifest.contract.inputs[0]
    if _takes_whole_images(taken):
        return "Resizing, cropping and normalisation stand inside the graph: give it the whole image, upright, as 8-bit pixels."
    if taken.meaning == "normalised":
        return (
            "The graph takes normalised values: resize the image as above, then subtract the mean and divide by the deviation."
        )
    kind = "8-bit pixels" if taken.dtype == "uint8" else f"8-bit pixels as {taken.dtype}"
    return f"The normalisation stands inside the graph: give it {kind}, resized as above."


def running_code(manifest: Manifest) -> str:
    """A program that classifies the file `image.png` with `model.onnx`."""
    taken, preprocessing = manifest.contract.inputs[0], manifest.preprocessing
    whole = _takes_whole_images(taken)
    plain = whole or (preprocessing.resize == "squash" and preprocessing.antialias)
    lines = [*IMPORTS, *(PIL if plain else RENDER), "", 'session = onnxruntime.InferenceSession("model.onnx")']
    lines += [*(_decoded_lines(preprocessing, whole=whole) if plain else _rendered_lines(preprocessing)), *_input_lines(taken)]
    if taken.meaning == "normalised":
        lines[-1:-1] = _normalised_lines(preprocessing)
    lines.append(f"(outputs,) = session.run({[manifest.contract.outputs[0].name]}, {{{taken.name!r}: images}})")
    lines.append(f"print({list(manifest.labels)}[outputs[0].argmax()])")
    return "\n".join(lines)


def _takes_whole_images(taken: TensorSpec) -> bool:
    return taken.layout == "NHWC" and taken.dtype == "uint8" and all(isinstance(size, str) for size in taken.dims[1:3])


def _decoded_lines(preprocessing: Preprocessing, *, whole: bool) -> list[str]:
    (height, width), channels = preprocessing.size_px, preprocessing.num_channels
    lines = [f'image = PIL.ImageOps.exif_transpose(PIL.Image.open("image.png")).convert("{preprocessing.colour}")']
    if not whole:
        lines.append(f"image = image.resize(({width}, {height}), PIL.Image.Resampling.{preprocessing.interpolation.upper()})")
    return [*lines, f"pixels_HWC = np.asarray(image).reshape(image.height, image.width, {channels})"]


def _rendered_lines(preprocessing: Preprocessing) -> list[str]:
    return [f'pixels_HWC = render(Path("image.png"), {preprocessing!r})']


def _normalised_lines(preprocessing: Preprocessing) -> list[str]:
    low, high = preprocessing.value_range
    scaled = f"pixels_HWC / 255 * {high - low:g} + {low:g}"
    return [f"pixels_HWC = ({scaled} - {list(preprocessing.mean)}) / {list(preprocessing.std)}"]


def _input_lines(taken: TensorSpec) -> list[str]:
    """`images` from `pixels_HWC`: cast, laid out, and repeated where the graph's batch is fixed."""
    cast = "pixels_HWC" if taken.dtype == "uint8" else f"pixels_HWC.astype(np.{taken.dtype})"
    laid_out = cast if taken.layout == "NHWC" else f"{cast}.transpose(2, 0, 1)"
    batch = taken.dims[0]
    if isinstance(batch, int) and batch > 1:
        return [f"images = np.stack([{laid_out}] * {batch})  # the graph takes exactly {batch}: repeat one, or give that many"]
    return [f"images = {laid_out}[None]"]
