"""The whole upgrade from one config: from the model in service to its successor's verdict.

The steps are the other stages, given as partial functions, so each can be set here exactly as it is alone and a step that
was done before is found in the store instead of being done again. Pruning, calibration and the look at drift may be left out
(`prune: null`, `calibrate: null`, `drift: null`). A candidate that does not pass the gate is not released; its report page is
written all the same, because a refusal needs reasons too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.profile import load_profile
from toolkit.data import ImageSet
from toolkit.errors import CheckFailed, Undecided, UsageError
from toolkit.release.documents import CARD
from toolkit.release.tables import open_console, show_report
from toolkit.stages.evaluate import evaluate


@dataclass(frozen=True)
class Steps:
    """The stages an upgrade runs, each a function that lacks only the bundle, the store, the data and the run directory."""

    adopt: Callable[..., Bundle]
    finetune: Callable[..., Bundle]
    export: Callable[..., Bundle]
    gate: Callable[..., Report]
    release: Callable[..., Bundle]
    prune: Callable[..., Bundle] | None = None
    calibrate: Callable[..., Bundle] | None = None
    drift: Callable[..., Report] | None = None


@dataclass(frozen=True)
class Predecessor:
    """How the model in service came to be: adopted, then trained on `data`. Made once, then found in the store."""

    adopt: Callable[..., Bundle]
    finetune: Callable[..., Bundle]
    data: ImageSet


def upgrade(
    alias: str = "production",
    *,
    store: Store,
    data: ImageSet,
    steps: Steps,
    run_dir: Path,
    output: Path,
    predecessor: Predecessor | None = None,
    resume: Path | None = None,
) -> Report:
    """Run the whole upgrade: new backbone, fine-tune, prune, calibrate, export, gate against the model in service, release.

    `alias` names the model in service. With `predecessor`, that model is made and put into service first (for
    demonstrations and trials). The report page and the model card are written to `output`. `resume` is the run directory of
    an interrupted upgrade: what was finished is found in the store, training goes on where it stood. Returns the gate's
    report; its `details.files` lists what was written. Raises what the stages raise.
    """
    console = open_console()
    optional = (steps.drift, steps.prune, steps.calibrate)
    story = _Story(console, total=7 + sum(step is not None for step in optional))
    story.tell("The model in service")
    places = _Places(run_dir, resume)
    baseline = _baseline(alias, store=store, steps=steps, predecessor=predecessor, places=places)
    story.tell(f"New data arrives: {data.name}; the model in service is measured on its test split")
    show_report(evaluate(baseline, store=store, data=data), console)
    if steps.drift is not None:
        story.tell("Is it still the data that the model in service knows?")
        _tell_drift(baseline, store=store, data=data, step=steps.drift, predecessor=predecessor, run_dir=run_dir)
    story.tell("Adopt the new backbone")
    candidate = steps.adopt(store=store)
    show_report(store.reports(candidate.digest)["adopt"], console)
    story.tell("Fine-tune it on the new data")
    candidate = steps.finetune(candidate, store=store, data=data, **places.of("finetune"))
    if steps.prune is not None:
        story.tell("Prune it and recover")
        candidate = steps.prune(candidate, store=store, data=data, **places.of("prune"))
        show_report(store.reports(candidate.digest)["pruning"], console)
    if steps.calibrate is not None:
        story.tell("Calibrate its confidences")
        candidate = steps.calibrate(candidate, store=store, data=data)
        show_report(store.reports(candidate.digest)["calibration"], console)
    story.tell("Export to ONNX and check parity")
    candidate = steps.export(candidate, store=store, data=data)
    show_report(store.reports(candidate.digest)["parity"], console)
    story.tell("May it replace the model in service?")
    verdict = steps.gate(candidate, store=store, baseline=baseline, data=data)
    if verdict.subjects[0] != candidate.digest:  # with steps.gate.adapt: the candidate behind an adapter
        candidate = store.open(verdict.subjects[0])
    story.tell("Release" if verdict.verdict == "pass" else "No release; the reasons are in the report")
    try:
        steps.release(candidate, store=store, alias=alias, baseline=baseline, data=data, output=output)
    except (CheckFailed, Undecided):
        if verdict.verdict == "pass":  # refused for another reason than the gate's, which the report would not show
            raise
    files = {"report page": str(output / f"report-{candidate.short}.html")}
    if verdict.verdict == "pass":
        files = {"model card": str(output / CARD), **files}
    return replace(verdict, details={**verdict.details, "files": files})


def _baseline(alias: str, *, store: Store, steps: Steps, predecessor: Predecessor | None, places: "_Places") -> Bundle:
    """The model in service; where it must be made first, made, exported and put into service.

    A made predecessor never displaces a model that was not its successor: that alias belongs to somebody.
    """
    served = store.aliases.history(alias) if alias in store.aliases.names() else ()
    if predecessor is None:
        if not served:
            raise UsageError(
                f"No model is in service under the alias '{alias}' in {store.root}. Adopt it first "
                f"(toolkit adopt architecture=... checkpoint=... alias={alias}), or set predecessor to have one made."
            )
        return store.open(alias)
    adopted = predecessor.adopt(store=store)
    trained = predecessor.finetune(adopted, store=store, data=predecessor.data, **places.of("predecessor"))
    baseline = steps.export(trained, store=store, data=predecessor.data)
    if not served:
        store.aliases.promote(alias, baseline.digest, note="the model in service before the upgrade")
    elif baseline.digest not in [entry.digest for entry in served]:
        raise UsageError(
            f"The alias '{alias}' in {store.root} serves another model than the predecessor made here. Give another alias "
            f"(alias=demo) or another store (store=<dir>)."
        )
    return baseline


def _tell_drift(
    baseline: Bundle,
    *,
    store: Store,
    data: ImageSet,
    step: Callable[..., Report],
    predecessor: Predecessor | None,
    run_dir: Path,
) -> None:
    """Show how the new data differs from what the model in service was released or made with; it stops nothing."""
    console = open_console()
    if predecessor is None and load_profile(store, baseline) is None:
        console.print(
            f"Bundle {baseline.short} has no reference profile to compare with. Its release makes one; for a model that came "
            f"from elsewhere: toolkit drift bundle={baseline.short} data@reference=<the data it was good on>"
        )
        return
    reference = None if predecessor is None else predecessor.data
    show_report(step(baseline, store=store, data=data, reference=reference, run_dir=run_dir / "drift"), console)


@dataclass(frozen=True)
class _Places:
    """Where each training step keeps its checkpoints: a directory of this run, or of the interrupted one."""

    run_dir: Path
    resume: Path | None

    def of(self, step: str) -> dict[str, Path | None]:
        """The arguments `run_dir` and `resume` of a step; a step that had not begun starts afresh."""
        earlier = None
        if self.resume is not None:
            root = self.resume.parent if self.resume.name in ("predecessor", "finetune", "prune") else self.resume
            earlier = root / step if (root / step).is_dir() else None
        return {"run_dir": self.run_dir / step, "resume": earlier}


class _Story:
    """The headings of the steps, with the time each took."""

    def __init__(self, console: Console, *, total: int) -> None:
        self.console, self.total, self.number = console, total, 0
        self.started = time.monotonic()

    def tell(self, title: str) -> None:
        self.number += 1
        elapsed = int(time.monotonic() - self.started)
        self.console.print()
        self.console.rule(
            f"[bold]{self.number}/{self.total}  {title}[/]  [dim]{elapsed // 60}:{elapsed % 60:02d}[/]", align="left"
        )
