"""A graph that was not written here, behind the one interface every check knows.

A graph of unknown origin takes what its makers chose: uint8, channels last, normalised floats, a batch of exactly eight. The
bundle's contract says which; this runner turns pixels into that and the answer into logits, so that no check need know.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from toolkit.backends.run_onnx import ORT_ERRORS, Provider, open_session, session_settings
from toolkit.backends.runner import pixel_batch
from toolkit.bundle import Contract, Preprocessing, TensorSpec
from toolkit.data.preprocessing import Normalise
from toolkit.errors import InputRefused, UsageError

DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "uint8": np.uint8}
LAYOUTS = ("NCHW", "NHWC")


class AdaptedRunner:
    """Runs the graph at `path` as `contract` describes it: pixels are normalised where its input is, cast, laid out and cut
    into its batches (the last one filled up with images again); probabilities are returned as their logarithms.

    `providers` are onnxruntime's execution providers (None: the CPU's), `threads` its threads within an operator (None: one a
    core), `optimisation` its level. Raises `InputRefused` for a damaged or unsafe graph, or a contract that is not the graph's.
    """

    def __init__(
        self,
        path: Path,
        *,
        contract: Contract,
        preprocessing: Preprocessing,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        optimisation: Literal["all", "basic", "off"] = "all",
    ) -> None:
        self.name = "onnxruntime-adapted"
        self.origin = str(path)
        self.input, self.output = _one_image_input(contract, self.origin), contract.outputs[0]
        self.normalise = Normalise(preprocessing) if self.input.meaning == "normalised" else None
        self.session = open_session(path, providers=providers, threads=threads, optimisation=optimisation)
        for kind, name, held in (
            ("input", self.input.name, self.session.get_inputs()),
            ("output", self.output.name, self.session.get_outputs()),
        ):
            if name not in [value.name for value in held]:
                raise InputRefused(f"{self.origin} has no {kind} '{name}', which its contract names: the bundle is damaged.")

    @property
    def settings(self) -> dict[str, Any]:
        """How the numbers are computed, for the record."""
        return session_settings(self.session)

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K) of float32 pixels 0..255 (N, C, H, W). Raises `UsageError` when the images do not fit the graph."""
        batch_NCHW = pixel_batch(images_NCHW, name=self.origin)
        prepared = self.prepared(batch_NCHW)
        wanted = self.input.dims
        if any(isinstance(w, int) and w != n for w, n in zip(wanted[1:], prepared.shape[1:], strict=True)):
            raise UsageError(f"{self.origin} takes images of shape {list(wanted)}; got {list(prepared.shape)}.")
        num_images = len(prepared)
        size = wanted[0] if isinstance(wanted[0], int) else max(num_images, 1)
        blocks = [
            self._run(prepared.take(range(start, start + size), axis=0, mode="wrap")) for start in range(0, num_images, size)
        ]
        return np.concatenate(blocks)[:num_images]

    def prepared(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Float32 pixels 0..255 (N, C, H, W) as the graph's input takes them: normalised, cast and laid out."""
        if self.normalise is not None:
            images_NCHW = self.normalise(torch.from_numpy(images_NCHW)).numpy()
        dtype = DTYPES[self.input.dtype]
        cast_NCHW = images_NCHW.round().clip(0, 255).astype(dtype) if dtype is np.uint8 else images_NCHW.astype(dtype)
        laid_out = cast_NCHW if self.input.layout == "NCHW" else cast_NCHW.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(laid_out)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            answer = np.asarray(self.session.run([self.output.name], {self.input.name: batch})[0])
        except ORT_ERRORS as error:
            raise InputRefused(
                f"{self.origin} cannot run a batch of shape {list(batch.shape)}: {str(error).strip().splitlines()[0]}."
            ) from error
        if answer.ndim < 2 or len(answer) != len(batch) or answer[0].size != answer.shape[1]:
            raise InputRefused(
                f"{self.origin} answers {len(batch)} images with the shape {list(answer.shape)}: expected one row of class "
                "scores for each."
            )
        scores_NK = answer.reshape(answer.shape[:2])
        if self.output.meaning != "probabilities":
            return scores_NK
        wide_NK = scores_NK.astype(np.float32) if scores_NK.dtype == np.float16 else scores_NK
        return np.log(np.maximum(wide_NK, np.finfo(wide_NK.dtype).tiny))


def _one_image_input(contract: Contract, origin: str) -> TensorSpec:
    if len(contract.inputs) != 1 or not contract.outputs:
        raise InputRefused(f"{origin}: its contract has {len(contract.inputs)} inputs; a classifier's graph has one.")
    found = contract.inputs[0]
    if found.dtype not in DTYPES or found.layout not in LAYOUTS or len(found.dims) != 4:
        raise InputRefused(
            f"{origin}: its contract's input is {found.dtype} {found.layout} {list(found.dims)}; images in "
            f"{', '.join(DTYPES)}, {' or '.join(LAYOUTS)} can be run."
        )
    return found
