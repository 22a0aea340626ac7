"""What the pages and the card tell of how a bundle was made."""

from dataclasses import replace

import torch

from tests.release.conftest import Family
from toolkit.bundle import lineage
from toolkit.release.story import story


def test_a_checkpoint_is_told_by_its_file(family: Family) -> None:
    recipe = {"checkpoint": {"entry": "ema", "file": "resnet18-f37072fd.pth", "sha256": "ab" * 32}}
    adopted = replace(family.baseline.manifest, lineage=lineage("adopt", recipe=recipe))
    bundle = family.store.add(adopted, weights={"weight": torch.ones(3)})
    facts = dict(story(family.store, bundle)[-1].facts)
    assert facts["checkpoint"] == "resnet18-f37072fd.pth"


def test_a_criterion_is_told_by_its_kind(family: Family) -> None:
    facts = [dict(step.facts) for step in story(family.store, family.candidate)]
    assert [found["criterion"] for found in facts if "criterion" in found] == ["taylor"]
