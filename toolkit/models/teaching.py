"""A bundle as a teacher: it sees the student's pixels, at its own size and with its own normalisation, and answers in the
student's labels.

Shapes: N batch, C channels, H height, W width, K the student's classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.bundle import Bundle, Preprocessing
from toolkit.errors import UsageError
from toolkit.models.deployed import Deployed
from toolkit.models.resizing import Resize
from toolkit.models.restoring import restore


class Teacher(nn.Module):
    """`deployed` behind an optional `resize`, its logits put into the order of the student's labels."""

    order_K: Tensor

    def __init__(self, deployed: nn.Module, *, resize: Resize | None, order: Sequence[int]) -> None:
        super().__init__()
        self.resize = resize or nn.Identity()
        self.deployed = deployed
        self.register_buffer("order_K", torch.tensor(order), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of the student's pixels 0..255 (N, C, H, W)."""
        return self.deployed(self.resize(images_NCHW)).index_select(1, self.order_K)


def teacher_for(
    bundle: Bundle, *, preprocessing: Preprocessing, labels: Sequence[str], deployed: nn.Module | None = None
) -> Teacher:
    """`bundle` as the teacher of a student with this preprocessing and these labels.

    `deployed` answers for the bundle (its own pixels to its own logits); left out, the bundle's restored module does.
    Labels are matched by name; those the student lacks are left out of the teacher's answer. Raises `UsageError` where the
    teacher lacks a label or takes another colour mode, and what `restore` raises.
    """
    known, own = bundle.manifest.labels, bundle.manifest.preprocessing
    missing = [label for label in labels if label not in known]
    if missing:
        raise UsageError(
            f"teacher {bundle.short} does not know the labels {', '.join(missing[:5])} (it knows {', '.join(known[:5])}, "
            f"{len(known)} in all): give a teacher trained on them, or train without one."
        )
    if own.colour != preprocessing.colour:
        raise UsageError(
            f"teacher {bundle.short} takes {own.colour} images and the student {preprocessing.colour}: "
            "give a teacher with the student's colour mode."
        )
    same_size = tuple(own.size_px) == tuple(preprocessing.size_px)
    resize = None if same_size else Resize(preprocessing.size_px, own.size_px)
    return Teacher(deployed or Deployed(restore(bundle), own), resize=resize, order=[known.index(label) for label in labels])


def teaching_facts(bundle: Bundle, *, preprocessing: Preprocessing, labels: Sequence[str]) -> dict[str, Any]:
    """What a reader should know of how `bundle` taught: its size and the student's, and what of its view differs."""
    own = bundle.manifest.preprocessing
    framing = ("resize", "crop_fraction", "interpolation", "antialias")
    return {
        "digest": bundle.digest,
        "size_px": list(own.size_px),
        "student_size_px": list(preprocessing.size_px),
        "resized": tuple(own.size_px) != tuple(preprocessing.size_px),
        "labels_left_out": [label for label in bundle.manifest.labels if label not in labels],
        "framed_by_student": {
            name: [getattr(own, name), getattr(preprocessing, name)]
            for name in framing
            if getattr(own, name) != getattr(preprocessing, name)
        },
    }
