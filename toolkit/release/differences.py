"""Two bundles side by side in the terminal: what each is, and what a caller would notice."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.bundle import Bundle
from toolkit.release.story import architecture, input_size


def show_differences(old: Bundle, new: Bundle, contract: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the facts of both bundles, those that differ marked, and each difference of the contract."""
    table = _table(f"{old.short} against {new.short}", ("", "old", "new", ""))
    for name, before, after in _facts(old, new):
        mark = "" if before == after else "differs"
        table.add_row(Text(name, style="dim"), Text(before), Text(after, style="bold" if mark else ""), mark)
    console.print(table)
    if not contract:
        console.print("Contract: ✓ identical. Callers stay as they are.")
        return
    breaking = any(difference["severity"] == "breaking" for difference in contract)
    table = _table(f"Contract: {'breaking' if breaking else 'compatible'}", ("what differs", "old", "new", "for a caller"))
    for difference in contract:
        style = "bold red" if difference["severity"] == "breaking" else ""
        severity = Text(difference["severity"], style=style)
        table.add_row(difference["item"], Text(str(difference["baseline"])), Text(str(difference["candidate"])), severity)
    console.print(table)


def _facts(old: Bundle, new: Bundle) -> list[tuple[str, str, str]]:
    sides = [_of(bundle) for bundle in (old, new)]
    facts = [(name, sides[0][name], sides[1][name]) for name in sides[0]]
    packages = [bundle.manifest.lineage.packages for bundle in (old, new)]
    moved = [name for name in sorted({*packages[0], *packages[1]}) if packages[0].get(name) != packages[1].get(name)]
    return [*facts, *((name, packages[0].get(name, "-"), packages[1].get(name, "-")) for name in moved)]


def _of(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    size = sum((bundle.path / name).stat().st_size for name in manifest.files)
    return {
        "architecture": f"{architecture(manifest)} ({manifest.architecture.key})",
        "input": f"{input_size(manifest)}, {manifest.preprocessing.resize}",
        "labels": ", ".join(manifest.labels[:8]) + (f" … {len(manifest.labels)} in all" if len(manifest.labels) > 8 else ""),
        "made by": manifest.lineage.stage,
        "training data": (manifest.lineage.data_fingerprint or "-")[:12],
        "files": ", ".join(sorted(manifest.files)),
        "size": f"{size / 2**20:.2f} MiB",
    }


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
