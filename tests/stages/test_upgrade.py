"""The whole upgrade from one command: a refusal leaves the model in service, a pass replaces it, nothing is done twice."""

from pathlib import Path

import pytest

from tests.children import command
from toolkit.bundle import Store
from toolkit.cli import main

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


def here(*arguments: str) -> int:
    """The exit code of a command that runs in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose store has an untrained ResNet-18 in service."""
    monkeypatch.chdir(tmp_path)
    assert here("adopt", *ADOPT_OLD, "alias=production") == 0
    return tmp_path


@pytest.mark.slow
def test_a_refused_candidate_leaves_the_model_in_service_and_a_passing_one_replaces_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(place / "store")
    before = store.aliases.current("production")
    refused = command(*UPGRADE, STRICT, cwd=place, COLUMNS="160")
    assert refused.poll() == 1, refused.stdout + refused.stderr
    assert store.aliases.current("production") == before
    page = Path(place, refused.stdout.strip().splitlines()[-1].partition(": ")[2])
    assert "<html" in page.read_text(encoding="utf-8")
    bundles = store.digests()

    passed = command(*UPGRADE, *MILD, cwd=place, COLUMNS="160")
    assert passed.poll() == 0, passed.stdout + passed.stderr
    assert store.digests() == bundles, "the second run must find every bundle of the first"
    candidate = store.open("production")
    assert candidate.digest != before
    assert [b.manifest.lineage.stage for b in store.ancestors(candidate)] == ["prune", "finetune", "adopt"]
    card, page = (Path(place, line.partition(": ")[2]) for line in passed.stdout.strip().splitlines()[-2:])
    assert card.read_text(encoding="utf-8").startswith("---")
    assert candidate.short in page.name

    capsys.readouterr()
    assert here("log", "production") == 0
    logged = capsys.readouterr().out
    for stage in ("export", "prune", "finetune", "adopt"):
        assert stage in logged
    assert here("rollback", "production") == 0
    assert store.aliases.current("production") == before


def test_without_a_model_in_service_the_message_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(*UPGRADE) == 2
    assert "toolkit adopt" in capsys.readouterr().err
    assert not (tmp_path / "store" / "bundles").exists()
