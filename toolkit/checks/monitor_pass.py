"""One look at what has arrived: read, judge, count, save; piece by piece, so that a stop loses nothing and repeats nothing."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from toolkit.backends.features import FeatureRunner, open_features
from toolkit.bundle import Bundle, Report
from toolkit.checks.drift_verdict import Threshold
from toolkit.checks.metrics import Predictions
from toolkit.checks.monitor import State, counted, load_state, monitor_report
from toolkit.checks.monitor_records import Answer, LateTruth, read_record
from toolkit.checks.monitor_reference import reference
from toolkit.checks.monitor_truths import joined
from toolkit.checks.profile import Profile
from toolkit.data import render
from toolkit.data.arrivals import Batch, Place, to_look_at_again
from toolkit.errors import InputRefused

MAX_TOLD = 3

log = logging.getLogger(__name__)


class Watch:
    """A bundle, its profile and a source; the state is read before and written after every batch of a look."""

    def __init__(self, bundle: Bundle, profile: Profile, *, source: str, path: Path, alpha: float) -> None:
        self.bundle, self.profile, self.path, self.alpha = bundle, profile, path, alpha
        self.place = Place(source)
        self.reference = reference(profile, alpha=alpha)
        self._runner: FeatureRunner | None = None

    def look(self, min_samples: Threshold, *, stop: Callable[[], bool] = lambda: False) -> Report:
        """Count everything that has arrived, saving after each batch; ends early, saved, when `stop` says so.

        Raises `InputRefused` for a state that is not this bundle's, and when all that a first look finds is refused.
        """
        state = load_state(self.path, self.bundle, self.profile.report, alpha=self.alpha)
        told, again = 0, {}
        for batch in self.place.batches(state.marks):
            if stop():
                break
            state, problems = self._count(state, batch, again)
            for problem in problems[: max(0, MAX_TOLD - told)]:
                log.warning("Refused: %s", problem)
            told += len(problems)
            if state.num_samples == 0 and problems:
                raise InputRefused(f"{self.place.url}: nothing in {batch.name} can be used. First problem: {problems[0]}")
            state.save(self.path)
        return monitor_report(state, self.reference, self.bundle, min_samples=min_samples)

    def _count(self, state: State, batch: Batch, again: dict[str, int]) -> tuple[State, list[str]]:
        truths: list[LateTruth] = []
        if batch.images:
            answers, embeddings_NP, problems = self._ask(batch.images)
            again |= {name: len(batch.images[name]) for name in problems}
            told = list(problems.values())
        else:
            answers, told, embeddings_NP = [], [], None
            for line in batch.lines:
                try:
                    record = read_record(line, self.bundle.manifest.labels)
                    if isinstance(record, LateTruth):
                        truths.append(record)
                    else:
                        answers.append(record)
                except ValueError as error:
                    told.append(f"{batch.name}: {line[:80]!r}: {error}")
        waiting, answers, settled = joined(state.waiting, answers, truths)
        marks = to_look_at_again(batch.marks, again)
        state = replace(state, waiting=waiting, num_refused=state.num_refused + len(told))
        return counted(state, answers, self.reference, marks=marks, embeddings_NP=embeddings_NP, settled=settled), told

    def _ask(self, images: Mapping[str, bytes]) -> tuple[list[Answer], np.ndarray | None, dict[str, str]]:
        """The model's own answers to images that arrived, their embeddings, and why others cannot be used, by name."""
        pixels, usable, problems = [], [], {}
        for name, content in images.items():
            try:
                pixels.append(render(content, self.bundle.manifest.preprocessing).transpose(2, 0, 1))
                usable.append(name)
            except InputRefused as error:
                problems[name] = f"{name}: {error}"
        if not pixels:
            return [], None, problems
        self._runner = self._runner or open_features(self.bundle)
        if self._runner.source != self.profile.source:
            raise InputRefused(
                f"the reference profile was made from {self.profile.source}, the bundle now gives {self._runner.source}."
            )
        logits_NK, features_ND = self._runner(np.stack(pixels).astype(np.float32))
        predictions = Predictions.from_logits(logits_NK, np.zeros(len(logits_NK), int))
        told = zip(usable, predictions.classes_N, predictions.confidences_N, strict=True)
        answers = [Answer(int(k), float(c), id=PurePosixPath(name).name) for name, k, c in told]
        return answers, self.profile.embed(features_ND), problems
