"""Every stage composes with every option of every group it lists, and every option instantiates."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from toolkit.cli import ALLOWED_TARGETS, checking, stage_names

CONF = Path(__file__).parents[2] / "conf"
GROUPS = sorted(
    p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("__pycache__", "experiment", "run", "launcher", "hydra")
)
NEEDS_A_PLACE = {("data", "folder"), ("data", "shards"), ("data", "torchvision")}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(stage: str, overrides: list[str]) -> DictConfig:
    with initialize_config_module("toolkit.conf", version_base="1.3"):
        config = compose(stage, overrides=overrides, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = "runs/here"
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return config


def slots(stage: str) -> list[tuple[str, str]]:
    """The `group@package` slots of a stage's defaults list, as (override key, group)."""
    found = []
    for entry in OmegaConf.load(CONF / f"{stage}.yaml").get("defaults", []):
        if isinstance(entry, DictConfig):
            key = str(next(iter(entry))).removeprefix("optional ").removeprefix("override ").removeprefix("/")
            found.append((key, key.partition("@")[0]))
    return found


CASES = [
    (stage, f"{key}={option}")
    for stage in stage_names()
    for key, group in slots(stage)
    if group in GROUPS
    for option in options(group)
]
EXPERIMENTS = [
    (path.stem, OmegaConf.load(path).get("stage", "upgrade")) for path in sorted((CONF / "experiment").glob("*.yaml"))
]


def check_config(stage: str, config: DictConfig) -> None:
    """Every target exists, every key is a parameter, every plain value has the annotated type: what runs first in a run."""
    assert checking.target(config).__name__ == stage
    config.pop("plugins", None)
    for key in OmegaConf.missing_keys(config):  # what the user must give
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(config, parent) if parent else config)[name]
    checking.check(config, allowed=ALLOWED_TARGETS)


@pytest.mark.parametrize("stage", stage_names())
def test_each_stage_composes_and_its_keys_are_its_parameters(stage: str) -> None:
    check_config(stage, composed(stage, []))


@pytest.mark.parametrize(("stage", "override"), CASES)
def test_each_stage_composes_with_each_option(stage: str, override: str) -> None:
    check_config(stage, composed(stage, [override]))


@pytest.mark.parametrize(("experiment", "stage"), EXPERIMENTS)
def test_each_experiment_composes(experiment: str, stage: str) -> None:
    check_config(stage, composed(stage, [f"experiment={experiment}"]))


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g) if (g, o) not in NEEDS_A_PLACE])
def test_each_option_instantiates(group: str, option: str, tmp_path: Path) -> None:
    config = OmegaConf.create({group: OmegaConf.load(CONF / group / f"{option}.yaml"), "run_dir": str(tmp_path)})
    assert instantiate(config[group], _convert_="all") is not None


def test_there_are_cases() -> None:
    assert len(CASES) > 10
    assert EXPERIMENTS
