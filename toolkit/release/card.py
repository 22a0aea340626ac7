"""The model card: Markdown with Hugging Face front matter, computed from the manifest and the reports alone.

Cards go stale because people write numbers into them. Here every number comes from a report and the card is written again at
each release; the words that only people know (intended use, limits) stand between two markers and are carried over.
"""

import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from toolkit.bundle import ONNX, Bundle, Report, Store
from toolkit.errors import InputRefused
from toolkit.release import quantities
from toolkit.release.card_code import running_code, running_words
from toolkit.release.quantities import limited, rows
from toolkit.release.story import architecture, family_reports, input_size, story

BEGIN = "<!-- Yours to edit: what stands between these two lines is kept when the card is written again. -->"
END = "<!-- End of your part. -->"
EMPTY_SECTION = """
## Intended use

Say what the model decides, for whom, and what it must not be used for.

## Limits

Say what the measurements below do not cover.
"""

COSTS = ("parameters.candidate", "macs.candidate", "size.candidate", "latency_median.candidate")
CHECKS = ("data", "pruning", "parity", "parity.fp16", "parity.int8", "gate", "evaluate")
HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "roc_auc": "roc_auc", "brier": "brier_score"}


def render_card(store: Store, bundle: Bundle, *, name: str, section: str = EMPTY_SECTION) -> str:
    """The card of `bundle` under the name `name`, with the user's `section` in it as it is."""
    reports = store.reports(bundle.digest)
    family = family_reports(store, bundle)
    gate, evaluation = reports.get("gate"), reports.get("evaluate")
    compared = rows(gate) if gate else []
    quality = [row for row in compared if row.change is not None and row.change.name.startswith(f"{row.metric}.difference")]
    by_name = {m.name: m for m in gate.measurements} if gate else {}
    return (
        _templates()
        .get_template("card.md.j2")
        .render(
            card_data=_front_matter(bundle, gate or evaluation, name).to_yaml(),
            name=name,
            begin=BEGIN,
            end=END,
            section=section.strip("\n"),
            bundle=bundle,
            manifest=bundle.manifest,
            input=input_size(bundle.manifest),
            run_it=(running_words(bundle.manifest), running_code(bundle.manifest)) if bundle.has(ONNX) else (),
            story=story(store, bundle),
            gate=gate,
            evaluation=evaluation,
            data=gate.details.get("data", {}) if gate else {},
            quality=quality,
            worse=[row for row in quality if row.direction == "worse"],
            flips=_flip_sentence(gate) if gate else "",
            costs=[by_name[cost] for cost in COSTS if cost in by_name],
            limits=limited(gate) if gate else [],
            reports={name: family[name] for name in CHECKS if name in family},
            q=quantities,
        )
    )


def user_section(path: Path) -> str:
    """The user's part of the card at `path`; the empty form when there is no card yet.

    Raises `InputRefused` when a file is there without the markers: it would be lost.
    """
    if not path.exists():
        return EMPTY_SECTION
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n?{re.escape(END)}", path.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise InputRefused(
            f"{path} has lost the two marker lines around your part of the card, so writing it again would lose your words. "
            f"Put your part between '{BEGIN}' and '{END}', or move the file away."
        )
    return found[1]


def _front_matter(bundle: Bundle, report: Report | None, name: str) -> ModelCardData:
    manifest = bundle.manifest
    tags = ["model-upgrade-toolkit", *(["onnx"] if bundle.has(ONNX) else []), *(["pruned"] if manifest.plan else [])]
    library = "onnx" if bundle.has(ONNX) else "timm" if manifest.architecture.key.startswith("timm/") else "pytorch"
    results = _results(report) if report else []
    return ModelCardData(
        model_name=f"{name} ({architecture(manifest)})",
        library_name=library,
        pipeline_tag="image-classification",
        tags=tags,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
    )


def _results(report: Report) -> list[EvalResult]:
    """The candidate's scores on the whole split, as the hub's evaluation results."""
    data = report.details.get("data", {})
    dataset = str(data.get("name", "unnamed"))
    found = []
    for measurement in report.measurements:
        parsed = quantities.parse(measurement.name)
        wanted = parsed.metric in (*quantities.SCORES, "nll", "brier", "ece") and not parsed.scope
        if not wanted or parsed.side not in ("", "candidate") or measurement.value is None:
            continue
        result = EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9_-]+", "-", dataset.lower()).strip("-") or "unnamed",
            dataset_name=dataset,
            dataset_split=str(data.get("split", "test")),
            dataset_revision=data.get("fingerprint"),
            metric_type=HUB_METRICS.get(parsed.metric, parsed.metric),
            metric_name=quantities.TITLES[parsed.metric],
            metric_value=round(measurement.value, 4),
        )
        found.append(result)
    return found


def _flip_sentence(gate: Report) -> str:
    values = {m.name: m for m in gate.measurements}
    negative, positive = values["negative_flip_rate"], values["positive_flip_rate"]
    count = round((negative.value or 0) * (negative.n or 0))
    return (
        f"On {count} of {negative.n} images ({quantities.show_value(negative)}, 95% interval "
        f"{quantities.show_interval(negative)}) the predecessor was right and this model is wrong; the opposite holds for "
        f"{quantities.show_value(positive)}."
    )


def read_card(path: Path) -> ModelCard:
    """The card at `path` as the hub's library reads it."""
    return ModelCard.load(path)


def _templates() -> jinja2.Environment:
    """Markdown is not HTML: nothing is autoescaped, and table cells lose their bars and line ends instead."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["cell"] = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;")
    environment.filters["num"] = lambda value: f"{value:g}"
    return environment
