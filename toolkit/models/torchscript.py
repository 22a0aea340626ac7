"""The architecture `torchscript`: a program in service, as a module that answers as every other model does.

A bundle of this architecture holds the program as it was saved, and its contract says what the program takes and returns.
There is a module that runs, moves between devices and changes precision, and none that could be trained, cut or exported.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.bundle import Contract
from toolkit.errors import InputRefused
from toolkit.models.torchscript_program import open_program

KEY = "torchscript"
FILE = "model.ts"
DTYPES = {"float32": None, "float16": torch.float16, "uint8": torch.uint8}  # None: the type the images come in


class Scripted(nn.Module):
    """`program` as `contract` describes it: normalised float images (N, C, H, W) to logits (N, K); `origin` names it in errors.

    A program that takes pixels is handed pixels by a preprocessing that changes nothing; probabilities come back as their
    logarithms.
    """

    def __init__(self, program: nn.Module, contract: Contract, *, origin: str) -> None:
        super().__init__()
        self.program = program
        self.input, self.output, self.origin = contract.inputs[0], contract.outputs[0], origin

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K). Raises `InputRefused` where the program fails on these images or answers in another form."""
        dtype = DTYPES[self.input.dtype]
        prepared = images_NCHW if self.input.layout == "NCHW" else images_NCHW.permute(0, 2, 3, 1)
        if dtype is not None:
            prepared = (prepared.round().clamp(0, 255) if dtype is torch.uint8 else prepared).to(dtype)
        one_by_one = self.input.dims[0] == 1
        parts = [self._answered(part) for part in (prepared.split(1) if one_by_one else (prepared,))]
        scores_NK = torch.cat(parts).to(images_NCHW.dtype)
        if self.output.meaning != "probabilities":
            return scores_NK
        return scores_NK.clamp(min=torch.finfo(scores_NK.dtype).tiny).log()

    def _answered(self, images: Tensor) -> Tensor:
        try:
            answer = self.program(images)
        except RuntimeError as error:
            reason = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
            raise InputRefused(f"{self.origin} cannot run images of shape {list(images.shape)}: {reason[-1]}") from error
        if isinstance(answer, tuple | list) and answer:
            answer = answer[0]
        if (
            not isinstance(answer, Tensor)
            or answer.ndim < 2
            or len(answer) != len(images)
            or answer[0].numel() != answer.shape[1]
        ):
            found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputRefused(
                f"{self.origin} answers {len(images)} images with {found}: expected one row of class scores for each."
            )
        return answer.flatten(1)


def open_scripted(path: Path, contract: Contract) -> Scripted:
    """The program at `path` behind its contract, in evaluation mode. Raises `InputRefused` as `open_program` does, and for a
    contract that describes no classifier of images.
    """
    if len(contract.inputs) != 1 or not contract.outputs:
        raise InputRefused(f"{path}: its contract has {len(contract.inputs)} inputs; a classifier's program has one.")
    taken = contract.inputs[0]
    if taken.dtype not in DTYPES or taken.layout not in ("NCHW", "NHWC") or len(taken.dims) != 4:
        raise InputRefused(
            f"{path}: its contract's input is {taken.dtype} {taken.layout} {list(taken.dims)}; images in {', '.join(DTYPES)}, "
            "NCHW or NHWC can be run."
        )
    return Scripted(open_program(path), contract, origin=str(path)).eval()
