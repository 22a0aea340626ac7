"""Registry keys become modules here: building, heads, stages, restoring a bundle, and the deployed form of a model."""

from toolkit.models.deployed import Deployed, pixel_contract, uint8_contract
from toolkit.models.heads import find_head, replace_head, replace_head_by_label, scale_head
from toolkit.models.label_changes import LabelChanges, label_changes
from toolkit.models.registry import build, default_preprocessing, register, training_only
from toolkit.models.restoring import require_changeable, require_single, restore
from toolkit.models.stage_groups import stage_names
from toolkit.models.teaching import teacher_for, teaching_facts

__all__ = [
    "Deployed",
    "LabelChanges",
    "build",
    "default_preprocessing",
    "find_head",
    "label_changes",
    "pixel_contract",
    "register",
    "replace_head",
    "replace_head_by_label",
    "require_changeable",
    "require_single",
    "restore",
    "scale_head",
    "stage_names",
    "teacher_for",
    "teaching_facts",
    "training_only",
    "uint8_contract",
]
