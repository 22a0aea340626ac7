"""The whole upgrade from one command: a refusal leaves the model in service, a pass replaces it, nothing is done twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.bundle import Store

ADOPT_OLD = ["architecture=torchvision/resnet18", "labels=[circle,square,triangle]", "preprocessing={size_px: [32, 32]}"]
UPGRADE = [
    "upgrade",
    "data=shapes",
    "steps.adopt.architecture=torchvision/mobilenet_v3_small",
    "steps.adopt.preprocessing={size_px: [32, 32]}",
    "steps.finetune.schedule={head_epochs: 2, epochs: 1, depths: [-1]}",
    "steps.prune.recovery.schedule.epochs=1",
]
STRICT = "steps.gate.limits.rules.accuracy_not_worse.value=1.5"  # no candidate can be 150 points better
MILD = [f"~steps.gate.limits.rules.{name}" for name in ("accuracy_not_worse", "negative_flips", "slices")]


def toolkit(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", *arguments]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose store has an untrained ResNet-18 in service."""
    where = tmp_path_factory.mktemp("upgrade")
    done = toolkit(where, "adopt", *ADOPT_OLD, "alias=production")
    assert done.returncode == 0, done.stderr
    return where


@pytest.mark.slow
def test_a_refused_candidate_leaves_the_model_in_service_and_a_passing_one_replaces_it(place: Path) -> None:
    store = Store(place / "store")
    before = store.aliases.current("production")
    refused = toolkit(place, *UPGRADE, STRICT)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert store.aliases.current("production") == before
    page = Path(place, refused.stdout.strip().splitlines()[-1].partition(": ")[2])
    assert "<html" in page.read_text(encoding="utf-8")
    bundles = store.digests()

    passed = toolkit(place, *UPGRADE, *MILD)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert store.digests() == bundles, "the second run must find every bundle of the first"
    candidate = store.open("production")
    assert candidate.digest != before
    assert [b.manifest.lineage.stage for b in store.ancestors(candidate)] == ["prune", "finetune", "adopt"]
    card, page = (Path(place, line.partition(": ")[2]) for line in passed.stdout.strip().splitlines()[-2:])
    assert card.read_text(encoding="utf-8").startswith("---")
    assert candidate.short in page.name

    logged = toolkit(place, "log", "production")
    assert logged.returncode == 0
    for stage in ("export", "prune", "finetune", "adopt"):
        assert stage in logged.stdout
    assert toolkit(place, "rollback", "production").returncode == 0
    assert store.aliases.current("production") == before


def test_without_a_model_in_service_the_message_says_how_to_name_one(tmp_path: Path) -> None:
    done = toolkit(tmp_path, *UPGRADE)
    assert done.returncode == 2
    assert "toolkit adopt" in done.stderr
    assert not (tmp_path / "store" / "bundles").exists()
