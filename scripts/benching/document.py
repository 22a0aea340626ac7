"""Where results go: a JSON file with the machine and the versions, and the table in the docs between its markers."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benching.plots import ratios
from benching.turns import silence
from rich.console import Console

from toolkit.bundle import environment

DOCS = Path(__file__).parents[2] / "docs"
Section = Callable[[int], list[dict[str, Any]]]


def main(name: str, sections: dict[str, Section], *, page: str, purpose: str | None) -> None:
    """The command line of a benchmark script: run its sections and write what they found into docs/`page`."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each section (default 5)")
    parser.add_argument("--only", default=",".join(sections), help=f"sections, of {','.join(sections)}")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the directory of the pages")
    arguments = parser.parse_args()
    store, console, rows = arguments.docs / "bench" / f"{name}.json", Console(), {}
    if store.is_file():
        rows = json.loads(store.read_text(encoding="utf-8"))["sections"]
    for section in arguments.only.split(","):
        console.print(f"{section} ...")
        with silence():
            rows[section] = {"rows": sections[section](arguments.rounds), "environment": environment()}
        console.print(*(line(entry) for entry in rows[section]["rows"]), sep="\n", soft_wrap=True)
        ordered = {key: rows[key] for key in sections if key in rows}
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({"sections": ordered}, indent=1) + "\n", encoding="utf-8")
        ratios([entry for section in ordered.values() for entry in section["rows"]], store.with_suffix(".png"))
        picture = f"![{name}: how many times as fast](bench/{name}.png)"
        into_page(arguments.docs / page, name, f"{table(ordered)}\n\n{picture}")


def table(sections: dict[str, Any]) -> str:
    """The results in Markdown, with the machine below."""
    lines = ["| what | ours | other | ratio (range over rounds) | target | |", "|---|---|---|---|---|---|"]
    lines += [line(entry) for section in sections.values() for entry in section["rows"]]
    where = sorted({machine(section["environment"]) for section in sections.values()})
    return "\n".join([*lines, "", *where])


def line(entry: dict[str, Any]) -> str:
    """One result as a row of the table."""
    low, high = entry["range"]
    target = "" if entry["target"] is None else f"≥ {entry['target']:g}×"
    result = {None: "", True: "met", False: "**missed**"}[entry["met"]]
    values = [f"{entry[key]:,.4g} {entry['unit']}" for key in ("ours", "other")]
    ratio = f"{entry['ratio']:.2f}× ({low:.2f} … {high:.2f})"
    return f"| {entry['what']} | {values[0]} | {values[1]} | {ratio} | {target} | {result} |"


def machine(facts: dict[str, Any]) -> str:
    """Where the numbers come from, in a sentence."""
    packages = ", ".join(
        f"{name} {facts['packages'][name]}" for name in ("torch", "torchvision", "lightning") if name in facts["packages"]
    )
    return f"{facts['processor']}, Python {facts['python']}, {packages}; {facts['time_utc'][:10]}."


def into_page(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers of `name` in the Markdown file `page`, which gets them at its end when it has none."""
    start, end = f"<!-- bench {name} -->", f"<!-- /bench {name} -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    if start not in content:
        content = f"{content.rstrip()}\n\n{start}\n{end}\n".lstrip()
    before, rest = content.split(start, 1)
    page.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
