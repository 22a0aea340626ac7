"""A sweep that learns from its own jobs: `-m hydra/sweeper=optuna` (TPE; Bergstra et al., NeurIPS 2011).

Hydra's own plugin for Optuna wants Optuna 2 or Hydra 1.4, so this small one asks Optuna directly. What is searched is said in
Hydra's words: `key=interval(a,b)`, `key=tag(log,interval(a,b))`, `key=int(interval(1,4))`, `key=a,b,c`. A job is judged by the
validation score of the bundle it made; one that made none counts as failed.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from toolkit.cli.sweeping import Outcome
from toolkit.errors import EnvironmentProblem, UsageError


class OptunaSweeper(Sweeper):
    """`n_trials` jobs, `n_jobs` at a time, the first `n_startup_trials` at random; all drawn from `seed`."""

    def __init__(
        self,
        *,
        n_trials: int = 20,
        n_jobs: int = 1,
        n_startup_trials: int = 5,
        seed: int = 0,
        params: Mapping[str, str] | None = None,
    ) -> None:
        if n_trials < 1 or n_jobs < 1:
            raise UsageError(f"hydra.sweeper.n_trials is {n_trials} and n_jobs {n_jobs}; each must be at least 1")
        self.n_trials, self.n_jobs, self.n_startup_trials, self.seed = n_trials, n_jobs, n_startup_trials, seed
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials. Raises `EnvironmentProblem` without Optuna, `UsageError` where nothing is left open."""
        optuna = _optuna()
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        fixed = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in overrides if not o.is_sweep_override()]
        space = {o.get_key_element(): _distribution(o, optuna) for o in overrides if o.is_sweep_override()}
        if not space:
            raise UsageError(
                "hydra/sweeper=optuna has nothing to search: leave a setting open, as in 'schedule.lr=interval(1e-4,1e-2)'"
            )
        self._save_config()
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=self.n_startup_trials)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for first in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
            batch = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            self.validate_batch_is_legal(batch)
            for trial, done in zip(trials, self.launcher.launch(batch, initial_job_idx=first), strict=True):
                self._tell(study, trial, done, optuna)

    def _tell(self, study: Any, trial: Any, done: JobReturn, optuna: Any) -> None:
        outcome = done.return_value
        if isinstance(outcome, Outcome) and outcome.quality is not None:
            study.tell(trial, outcome.quality)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _save_config(self) -> None:
        assert self.config is not None
        directory = Path(str(self.config.hydra.sweep.dir))
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")


OptunaSweeper.__module__ = "hydra_plugins.model_upgrade_toolkit"


def register() -> None:
    """Make `hydra/sweeper=optuna` known to Hydra, which takes plugins from the package `hydra_plugins` alone: put it there."""
    Plugins.instance().register(OptunaSweeper)
    package, _, name = OptunaSweeper.__module__.partition(".")
    setattr(sys.modules.setdefault(package, ModuleType(package)), name, sys.modules[__name__])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise EnvironmentProblem("hydra/sweeper=optuna needs Optuna: pip install 'model-upgrade-toolkit[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(override: Override, optuna: Any) -> Any:
    """What Optuna draws from for one open setting: a choice among its values, or an interval of numbers."""
    if override.is_discrete_sweep():
        return optuna.distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    low, high, in_log = interval.start, interval.end, "log" in interval.tags
    assert low is not None
    assert high is not None
    kind = optuna.distributions.IntDistribution if isinstance(low, int) and isinstance(high, int) else None
    return (kind or optuna.distributions.FloatDistribution)(low, high, log=in_log)
