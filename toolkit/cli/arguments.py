"""What a person types, made safe for Hydra's grammar, and what Hydra says, made fit for a person.

Hydra reads `12345678` as a number, `two.pth#ema` and `epoch=3.ckpt` as errors of grammar; a digest, an alias or a path is
text whatever it looks like, so its value is quoted before Hydra sees it.
"""

import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException

from toolkit.errors import EnvironmentProblem, UsageError, unknown_name

TEXT = {"bundle", "baseline", "reference", "alias", "checkpoint", "teacher", "resume", "legacy", "store", "root", "csv"}
LAUNCHERS = {"hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray"}
SPECIAL = set(",'\"[]{}$\\")
BRACES = re.compile(r"[^,'\"\[\]{}$\\]+(\{[^'\"\[\]{}$\\]*\}[^,'\"\[\]{}$\\]*)+")  # `s3://bucket/train-{0000..0007}.tar`


def quoted(override: str) -> str:
    """`key=value` with the value quoted where the key takes text; lists, sweeps, interpolations and null stay as they are.

    A call (`legacy=old_code:build('b0', width=2)`) is text as a whole, its quotes and commas too.
    """
    key, separator, value = override.partition("=")
    if key.rpartition(".")[2] == "legacy" and re.fullmatch(r"[^'\"$]+\(.*\)", value):
        escaped = value.replace("'", r"\'")
        return f"{key}='{escaped}'"
    plain = separator and key.lstrip("+").rpartition(".")[2] in TEXT and value not in ("", "null", "???")
    return f"{key}='{value}'" if plain and (not SPECIAL & set(value) or BRACES.fullmatch(value)) else override


def with_job_name(overrides: Sequence[str], stage: str) -> list[str]:
    """The overrides with the job's name beside the first of them: flags may stand before, not between."""
    first = next((at for at, text in enumerate(overrides) if "=" in text and not text.startswith("-")), len(overrides))
    return [*overrides[:first], f"hydra.job.name={stage}", *overrides[first:]]


def missing_extra(error: Exception) -> EnvironmentProblem | None:
    """What to install, where Hydra does not know a launcher's plugin; None for any other error."""
    plugin = re.search(r"hydra_plugins\.(\w+)", str(error)) if isinstance(error, (RuntimeError, ImportError)) else None
    if plugin is None or plugin[1] not in LAUNCHERS:
        return None
    name = LAUNCHERS[plugin[1]]
    return EnvironmentProblem(
        f"launcher={name} needs {plugin[1].replace('_', '-')}: pip install 'model-upgrade-toolkit[{name}]', or launcher=local"
    )


def explained(error: HydraException, stage: str) -> UsageError:
    """Hydra's refusal as one clear message, with the nearest names where an option does not exist."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_name(f"option of {group}" if group else "config", option, error.options)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    key = re.search(r"Could not override '([^']+)'", first)
    if isinstance(error, ConfigCompositionException) and key:
        return UsageError(f"Unknown setting '{key[1]}'. toolkit {stage} --cfg job lists the settings; +{key[1]}=... adds one.")
    return UsageError(first)
