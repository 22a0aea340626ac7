"""From evidence to a decision: keep, watch, retrain, transfer or investigate, with the reasons.

A test says whether there is a difference, an effect says whether it matters; an alarm needs both. The p-values of all
families of tests go through Holm's correction together, so that a batch from the same source raises any of them with a
probability of at most `alpha`, whatever the number of tests.

| evidence | decision |
|---|---|
| the bundle no longer works here | investigate |
| fewer images than `min_samples` | undecided |
| labels the model cannot give | transfer |
| measured loss, the images look different | retrain; transfer where a new head on its features would not recover |
| measured loss, the images look the same | investigate: the meaning of the labels may have changed |
| no labels, images or answers differ, the confidence predicts a loss | retrain; transfer when it is another world |
| no labels, images or answers differ, no loss predicted | investigate: have some labelled |
| the images look different, a loss is measured that may be chance | as for a measured loss |
| the images look different, the labels are too few to rule a loss out | investigate: label more |
| the labels rule out a loss that matters, but something differs | watch |
| differences too small to matter, or packages far behind | watch |
| otherwise | keep |
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Literal

from toolkit.bundle.report import Verdict
from toolkit.errors import UsageError

Decision = Literal["keep", "watch", "retrain", "transfer", "investigate", "undecided"]
ALARMS = ("retrain", "transfer", "investigate")


@dataclass(frozen=True)
class Threshold:
    """A value that decides, and why it was chosen."""

    value: float
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise UsageError("a threshold needs a reason (reason=...)")


@dataclass(frozen=True)
class Thresholds:
    """What counts as drift. Shares and AUCs are 0..1; `releases_behind` counts minor releases, a major one as ten."""

    alpha: Threshold
    min_samples: Threshold
    separable: Threshold
    another_world: Threshold
    image_ks: Threshold
    psi: Threshold
    accuracy_loss: Threshold
    releases_behind: Threshold

    def __post_init__(self) -> None:
        if not 0 < self.alpha.value < 0.5:
            raise UsageError(
                f"thresholds.alpha is {self.alpha.value}; a false-alarm rate lies between 0 and 0.5 (0.05 is usual)"
            )
        if self.min_samples.value < 20:
            raise UsageError(f"thresholds.min_samples is {self.min_samples.value:g}; nothing can be said from fewer than 20")
        if not 0.5 <= self.separable.value <= self.another_world.value <= 1:
            raise UsageError("thresholds: an AUC lies between 0.5 and 1, and separable is at most another_world")
        for field in fields(self):
            if getattr(self, field.name).value < 0:
                raise UsageError(f"thresholds.{field.name} is negative")


class Grade(IntEnum):
    """How much something changed: nothing shown; shown but too small to matter; shown and large."""

    NONE = 0
    SMALL = 1
    LARGE = 2


@dataclass(frozen=True)
class Evidence:
    """What a batch shows. `loss` is measured with labels, else estimated; `possible_loss` is what labels do not rule out.

    `probe_recovers` is None where it was not tried.
    """

    embedding: Grade
    image: Grade
    predictions: Grade
    loss: Grade
    is_labelled: bool
    is_another_world: bool = False
    possible_loss: Grade = Grade.NONE
    probe_recovers: bool | None = None
    labels: Grade = Grade.NONE
    new_labels: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    is_behind: bool = False


def grade(*, is_significant: bool, effect: float, limit: Threshold) -> Grade:
    """The grade of a change that is or is not beyond chance, by its effect."""
    if not is_significant:
        return Grade.NONE
    return Grade.LARGE if effect > limit.value else Grade.SMALL


def decide(evidence: Evidence) -> tuple[Decision, list[str]]:
    """The decision, and the reasons in sentences, weightiest first."""
    told = _told(evidence)
    if evidence.broken:
        return "investigate", [f"The bundle no longer works here: {what}" for what in evidence.broken] + told
    looks_different = max(evidence.embedding, evidence.image) == Grade.LARGE
    if evidence.new_labels:
        named = ", ".join(evidence.new_labels[:5])
        return "transfer", [f"The new data has labels the model cannot give ({named}): it needs a new head.", *told]
    if evidence.is_labelled:
        return _with_labels(evidence, looks_different, told)
    return _without_labels(evidence, looks_different, told)


def verdict_for(decision: Decision) -> Verdict:
    """`fail` for a decision that asks somebody to act, `undecided` as it says, else `pass`."""
    return "undecided" if decision == "undecided" else "fail" if decision in ALARMS else "pass"


def _with_labels(evidence: Evidence, looks_different: bool, told: list[str]) -> tuple[Decision, list[str]]:
    if evidence.loss == Grade.LARGE and not looks_different:
        why = "The model is worse although the images look the same: check the new labels, their meaning may have changed."
        return "investigate", [why, *told]
    if looks_different and max(evidence.loss, evidence.possible_loss) == Grade.LARGE:
        worse = "The model is worse on images that look different."
        if evidence.loss < Grade.LARGE:
            worse = "The images look different, and the labels show a loss that matters but may be chance."
        if evidence.probe_recovers is False:
            return "transfer", [
                f"{worse} A new head on its features would not recover the loss: take a better backbone.",
                *told,
            ]
        how = (
            "The model's features carry what a new head needs"
            if evidence.probe_recovers
            else "The model may be able to learn them"
        )
        return "retrain", [f"{worse} {how}: train it on the new data.", *told]
    if looks_different and evidence.possible_loss == Grade.SMALL:
        why = "The images look different, and there are too few labels to rule out a loss that matters: label more of them."
        return "investigate", [why, *told]
    if looks_different or max(evidence.predictions, evidence.labels) == Grade.LARGE:
        return "watch", ["Something differs, but the labels rule out a loss that matters.", *told]
    return _quiet(evidence, told)


def _without_labels(evidence: Evidence, looks_different: bool, told: list[str]) -> tuple[Decision, list[str]]:
    if not looks_different and evidence.predictions < Grade.LARGE:
        return _quiet(evidence, told)
    if evidence.is_another_world:
        why = "The new images are another world to the model; what it learnt may not carry over. Label some and transfer."
        return "transfer", [why, *told]
    if evidence.loss == Grade.LARGE:
        return "retrain", ["The confidence on the new images predicts a loss. Label some, and train on them.", *told]
    why = "The new data differs and has no labels to tell whether the model is still right: label some of the images below."
    return "investigate", [why, *told]


def _quiet(evidence: Evidence, told: list[str]) -> tuple[Decision, list[str]]:
    if told:
        return "watch", [
            "What differs is too small to matter yet." if not evidence.is_behind else "No drift that matters.",
            *told,
        ]
    return "keep", ["Nothing in this batch differs from the reference beyond chance."]


def _told(evidence: Evidence) -> list[str]:
    size = {Grade.SMALL: "a little", Grade.LARGE: "clearly"}
    subjects = {
        "embedding": "To the model the images look {} different.",
        "image": "Light, sharpness, colour or size of the images differ {}.",
        "predictions": "The model's answers or confidences are distributed {} differently.",
        "labels": "The true labels are distributed {} differently.",
    }
    found = [text.format(size[g]) for name, text in subjects.items() if (g := getattr(evidence, name)) != Grade.NONE]
    if evidence.loss != Grade.NONE:
        kind = "Accuracy" if evidence.is_labelled else "Estimated accuracy"
        found.insert(0, f"{kind} is {size[evidence.loss]} lower than on the reference.")
    if evidence.is_behind:
        found.append("The packages the model was made with are far behind those installed.")
    return found
