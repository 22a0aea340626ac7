"""What was done to arrive at a bundle, in words: the lineage of the candidate and of the model it replaces, oldest first."""

from dataclasses import dataclass
from typing import Any

import yaml

from toolkit.bundle import Bundle, Manifest, Report, Store
from toolkit.release.findings import architecture_words, findings

STAGES = {
    "adopt": "Adopted a network",
    "finetune": "Fine-tuned",
    "prune": "Pruned and recovered",
    "interpolate": "Interpolated with its predecessor",
    "calibrate": "Calibrated",
    "export": "Exported to ONNX",
    "adapt": "Adapted to the contract in service",
}


@dataclass(frozen=True)
class Step:
    """One bundle of a lineage: `what` was done in a few words, `facts` (name, value) and the recipe in YAML."""

    bundle: Bundle
    what: str
    facts: tuple[tuple[str, str], ...]
    recipe: str
    aliases: tuple[str, ...]


def story(store: Store, bundle: Bundle) -> list[Step]:
    """The steps from the first ancestor to `bundle`."""
    family = [*reversed(store.ancestors(bundle)), bundle]
    return [_step(store, member, before) for before, member in zip([None, *family], family, strict=False)]


def family_reports(store: Store, bundle: Bundle) -> dict[str, Report]:
    """The bundle's reports, and of checks it has none of, the nearest ancestor's: what was pruned was measured there."""
    found: dict[str, Report] = {}
    for member in [bundle, *store.ancestors(bundle)]:
        found = {**store.reports(member.digest), **found}
    return found


def architecture(manifest: Manifest) -> str:
    """The architecture in words: its name, and whether it was pruned or stands behind an adapter."""
    around = manifest.architecture.kwargs.get("around")
    key = str(around or manifest.architecture.key)
    name = key.partition("/")[2] or key
    return f"adapted {name}" if around else f"pruned {name}" if manifest.plan else name


def input_size(manifest: Manifest) -> str:
    """Height × width and colour mode of the input."""
    height, width = manifest.preprocessing.size_px
    return f"{height}×{width} px {'colour' if manifest.preprocessing.colour == 'RGB' else 'grey'}"


def _step(store: Store, bundle: Bundle, before: Bundle | None) -> Step:
    """One step; architecture and input are told where they change."""
    manifest = bundle.manifest
    made = manifest.lineage
    recipe = _read(made.recipe)
    facts = _recipe_facts(made.stage, recipe)
    if before is None or input_size(before.manifest) != input_size(manifest):
        facts.insert(0, ("input", input_size(manifest)))
    if before is None or before.manifest.architecture.key != manifest.architecture.key:
        facts.insert(0, ("architecture", architecture_words(manifest)))
    if before is None or before.manifest.labels != manifest.labels:
        facts.append(("labels", _shortened(manifest.labels)))
    facts += findings(store, bundle.digest)
    aliases = tuple(name for name in store.aliases.names() if store.aliases.current(name) == bundle.digest)
    return Step(bundle, STAGES.get(made.stage, made.stage.capitalize()), tuple(facts), made.recipe, aliases)


def _shortened(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if len(labels) <= 4 else f"{len(labels)}, from {labels[0]} to {labels[-1]}"


def _recipe_facts(stage: str, recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings of a recipe that a reader asks for first, where it has them."""
    found = []
    for key in ("checkpoint", "criterion", "opset"):
        if recipe.get(key):
            found.append((key, _named(recipe[key])))
    target = recipe.get("target")
    if isinstance(target, dict):
        found += [("target", f"{name} {value:g}") for name, value in target.items() if isinstance(value, float)]
    schedule = recipe.get("schedule")
    if stage == "finetune" and isinstance(schedule, dict):
        epochs = sum(phase.get("epochs", 0) for phase in schedule.get("phases", []))
        found.append(("schedule", f"{schedule.get('name', 'own')}, {epochs} epochs"))
    return found


def _named(value: Any) -> str:
    """A setting by the name a reader knows: a criterion's kind, the file that a checkpoint was."""
    if not isinstance(value, dict):
        return str(value)
    return value["kind"].lower() if "kind" in value else str(value.get("file", value))


def _read(recipe: str) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(recipe) if recipe else {}
    except yaml.YAMLError:  # the recipe may come from anywhere; it is shown as it is
        return {}
    return plain if isinstance(plain, dict) else {}
