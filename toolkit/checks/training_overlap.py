"""Were the test images in the training data? A model is not tested by what it learned from, and its scores would not show it.

Every training keeps the digests of its images' pixels (64 bits each; of train, and of val, which chooses the weights) with its
report `data`, so that the question has an answer when the model meets another data set years later. Images are compared by
their pixels: a file that was saved again or renamed is still the same image.

Legend: N images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.bundle import Bundle, Measurement, Store
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.data import ImageSet
from toolkit.data.audit import pixel_digests

SEEN = "test_images_seen"
TRAINING = ("finetune", "prune")
REASON = "What a model learned from does not test it."


@dataclass(frozen=True)
class Overlap:
    """How many of `num_images` test images were in the training data (None: unknown), and `text` that says so.

    `trained`: whether the lineage holds a training at all; an adopted model's is not on record.
    """

    count: int | None
    num_images: int
    trained: bool
    text: str

    def held(self, limits: GateLimits) -> GateLimits:
        """The limits with one that allows no such image, unless they name their own or no training is on record."""
        if not self.trained or SEEN in [rule.subject for rule in limits.rules.values()]:
            return limits
        return GateLimits({**limits.rules, SEEN: Rule(SEEN, "==", 0, reason=REASON)})

    def measurement(self) -> Measurement:
        """The count as the report has it."""
        return Measurement(SEEN, None if self.count is None else float(self.count), "images", n=self.num_images)


def seen_images(images: ImageSet) -> dict[str, Tensor]:
    """What a training keeps of its images: the digests of train and validation, int64 (N,), by the name `seen`."""
    digests = [digest for split in ("train", "val") for digest in pixel_digests(images.split(split)) if digest is not None]
    return {"seen": torch.tensor(sorted(set(digests)), dtype=torch.int64)}


def training_overlap(store: Store, bundle: Bundle, images: ImageSet, *, split: str) -> Overlap:
    """Which images of `split` the trainings that led to `bundle` have seen, by their pixels."""
    tested = images.split(split)
    family = [bundle, *store.ancestors(bundle)]
    trainings = [member for member in family if member.manifest.lineage.stage in TRAINING]
    if not trainings:
        return Overlap(None, len(tested), False, "No training of it is on record, so what it has seen is not known.")
    seen: set[int] = set()
    unknown = []
    for member in trainings:
        report = store.reports(member.digest).get("data")
        if report is not None and "tensors" in report.details:
            seen |= set(store.report_tensors(report)["seen"].tolist())
        elif member.manifest.lineage.data_fingerprint == images.fingerprint():
            seen |= set(seen_images(images)["seen"].tolist())
        else:
            unknown.append(member.short)
    keys = [sample.key for sample, digest in zip(tested.samples, pixel_digests(tested), strict=True) if digest in seen]
    if keys:
        text = f"{len(keys)} of {len(tested)} test images were in its training data, e.g. {', '.join(keys[:3])}."
        return Overlap(len(keys), len(tested), True, text)
    if unknown:
        text = f"What {', '.join(unknown)} was trained on is not on record (other data, or an older toolkit): train it again."
        return Overlap(None, len(tested), True, text)
    return Overlap(0, len(tested), True, "")
