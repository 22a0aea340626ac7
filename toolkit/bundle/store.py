"""Bundles on disk, by digest.

`<root>/bundles/<digest>/` holds a manifest and the files it hashes; `<root>/reports/<digest>/<check>.json` what checks
said, with its tensors, where it has any, in a file beside it; `<root>/aliases/<name>.json` the names that move. A bundle is
written into a staging directory and renamed to its digest, so one that can be seen is complete. Opening re-hashes every
file: one flipped bit in a weight file loads without any error from the libraries that read it, and only the manifest
notices.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load, load_file, save, save_file

from toolkit import __version__
from toolkit.bundle.aliases import Aliases
from toolkit.bundle.atomic import (
    clear_leftovers,
    environment_errors,
    replace_directory,
    sha256_file,
    staging_directory,
    sync_directory,
    sync_file,
    write_atomic,
)
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.report import Report, package_versions
from toolkit.errors import InputRefused, UsageError, unknown_name

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
GRAPHS = {"fp32": ONNX, "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}  # by precision
GOLDEN = "golden.safetensors"

DIGEST = re.compile(r"[0-9a-f]{64}")
CHECK_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")

MEND = "Restore it from a copy, or delete the bundle's directory and run the stage that made it again."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A model at rest: its digest, its manifest and the directory that holds its files."""

    digest: str
    manifest: Manifest
    path: Path

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, for people."""
        return self.digest[:12]

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file `name`."""
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """The path of the bundle's file `name`. Raises `InputRefused` when the manifest does not list it."""
        if name not in self.manifest.files:
            raise InputRefused(
                f"bundle {self.short} has no {name} (it holds {', '.join(sorted(self.manifest.files)) or 'no files'})."
            )
        return self.path / name

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of `weights.safetensors`, by name, on the CPU."""
        return load_file(self.file(WEIGHTS))


class Store:
    """The bundles, reports and aliases under one directory, which is made on the first write."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.aliases = Aliases(self.root / "aliases")

    def add(
        self, manifest: Manifest, *, weights: Mapping[str, torch.Tensor] | None = None, files: Mapping[str, Path] | None = None
    ) -> Bundle:
        """Write a bundle and return it; a bundle with the same content is returned as it lies.

        `weights` are written as safetensors without metadata (byte-stable); `files` maps relative POSIX paths to files
        to copy in. `manifest.files` is computed here. Raises `EnvironmentProblem` when the store cannot be written.
        """
        bundles = self.root / "bundles"
        if bundles.is_dir():
            clear_leftovers(bundles)
        with staging_directory(bundles) as staging, environment_errors(bundles):
            if weights is not None:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, staging / WEIGHTS)
            for name, source in (files or {}).items():
                _copy(source, staging / _checked_name(name, "bundle"))
            names = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
            complete = replace(manifest, files={name: sha256_file(staging / name) for name in names})
            (staging / MANIFEST).write_bytes(complete.canonical_json())
            return self._publish(staging, complete)

    def _publish(self, staging: Path, manifest: Manifest) -> Bundle:
        target = self.root / "bundles" / manifest.digest
        for path in staging.rglob("*"):
            sync_directory(path) if path.is_dir() else sync_file(path)
        sync_directory(staging)
        os.chmod(staging, 0o755)
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            self._verify(Bundle(manifest.digest, manifest, target))
        sync_directory(target.parent)
        return Bundle(manifest.digest, manifest, target)

    def open(self, reference: str) -> Bundle:
        """The bundle that an alias, a digest or a unique beginning of one (8 digits or more) names, fully verified.

        Raises `UsageError` for an unknown reference and `InputRefused`, naming the file, for a damaged bundle.
        """
        digest = self.resolve(reference)
        bundle = self._read(digest)
        self._verify(bundle)
        return bundle

    def resolve(self, reference: str) -> str:
        """The digest that an alias, a digest or a unique beginning of one stands for. Raises `UsageError` otherwise."""
        digests = self.digests()
        if reference in digests:
            return reference
        if reference in self.aliases.names():
            current = self.aliases.current(reference)
            if current not in digests:
                raise InputRefused(f"alias '{reference}' names bundle {current}, which is not in the store {self.root}.")
            return current
        matches = [d for d in digests if d.startswith(reference)] if re.fullmatch(r"[0-9a-f]{8,63}", reference) else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"'{reference}' is the beginning of {len(matches)} bundles in {self.root}: give more digits.")
        if not digests:
            raise UsageError(
                f"No bundle '{reference}': the store {self.root} is empty. Make one (toolkit adopt) or point store= elsewhere."
            )
        raise unknown_name(f"bundle (in store {self.root})", reference, [*self.aliases.names(), *(d[:12] for d in digests)])

    def digests(self) -> list[str]:
        """All bundle digests in the store, sorted."""
        return sorted(p.name for p in (self.root / "bundles").glob("*") if DIGEST.fullmatch(p.name))

    def bundles(self) -> Iterator[Bundle]:
        """All bundles with sound manifests (others are logged); their files are not verified (`open` does that)."""
        for digest in self.digests():
            try:
                yield self._read(digest)
            except InputRefused as error:
                logger.warning("%s", error)

    def find(
        self, *, stage: str, parents: tuple[str, ...], recipe: str, data_fingerprint: str | None, packages: Sequence[str] = ()
    ) -> Bundle | None:
        """A verified bundle that the same stage made from the same parents, recipe and data by this toolkit version.

        `packages` names libraries whose installed versions must also be those it was made with.
        """
        here = package_versions()
        for bundle in self.bundles():
            made = bundle.manifest.lineage
            same = (made.stage, made.parents, made.recipe, made.data_fingerprint) == (stage, parents, recipe, data_fingerprint)
            same = same and all(made.packages.get(name) == here.get(name) for name in packages)
            if same and made.packages.get("model-upgrade-toolkit") == __version__:
                return self.open(bundle.digest)
        return None

    def ancestors(self, bundle: Bundle) -> list[Bundle]:
        """The bundles that `bundle` descends from, nearest first; ancestors missing from the store are left out."""
        found: list[Bundle] = []
        waiting = list(bundle.manifest.lineage.parents)
        present = set(self.digests())
        while waiting:
            digest = waiting.pop(0)
            if digest in present and digest not in [b.digest for b in found]:
                found.append(self._read(digest))
                waiting.extend(found[-1].manifest.lineage.parents)
        return found

    def add_report(self, report: Report, *, tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
        """Keep a report beside its first subject, replacing an earlier one of the same check; returns its path.

        `tensors` are written first, to a file named by their content, and the report names that file in
        `details.tensors`: whoever reads the old report or the new one finds the tensors that belong to it.
        """
        if not CHECK_NAME.fullmatch(report.check):
            raise UsageError(f"'{report.check}' cannot name a report: use lower-case letters, digits, '.', '_' and '-'.")
        directory = self.root / "reports" / report.subjects[0]
        kept = None
        if tensors is not None:
            content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            digest = hashlib.sha256(content).hexdigest()
            kept = directory / f"{report.check}-{digest[:16]}.safetensors"
            write_atomic(kept, content)
            report = replace(report, details={**report.details, "tensors": {"file": kept.name, "sha256": digest}})
        path = directory / f"{report.check}.json"
        write_atomic(path, report.to_json())
        for stale in directory.glob(f"{report.check}-{'[0-9a-f]' * 16}.safetensors"):
            if stale != kept:
                stale.unlink(missing_ok=True)
        return path

    def report_tensors(self, report: Report) -> dict[str, torch.Tensor]:
        """The tensors kept with a stored report, by name, on the CPU; none where it has none.

        Raises `InputRefused`, naming the file, when they are missing, damaged or not those of this report.
        """
        named = report.details.get("tensors")
        if named is None:
            return {}
        path = self.root / "reports" / report.subjects[0] / Path(str(named["file"])).name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputRefused(
                f"{path} cannot be read ({error.strerror or error}): run the check '{report.check}' again."
            ) from error
        if hashlib.sha256(content).hexdigest() != named["sha256"]:
            raise InputRefused(
                f"{path} is corrupt (its sha256 differs from the report's): run the check '{report.check}' again."
            )
        return load(content)

    def attach(self, report: Report, kind: str, files: Mapping[str, bytes]) -> Path:
        """Keep `files` beside a report, in the directory `<check>.<kind>`, replacing earlier ones; returns its path."""
        path = self.root / "reports" / report.subjects[0] / f"{report.check}.{kind}"
        replace_directory(path, files)
        return path

    def reports(self, digest: str) -> dict[str, Report]:
        """The reports whose first subject is the bundle `digest`, by check name."""
        paths = sorted((self.root / "reports" / digest).glob("*.json"))
        return {path.stem: Report.from_json(path.read_bytes(), str(path)) for path in paths}

    def _read(self, digest: str) -> Bundle:
        path = self.root / "bundles" / digest
        try:
            content = (path / MANIFEST).read_bytes()
        except OSError as error:
            raise InputRefused(f"bundle {digest[:12]} has no readable {MANIFEST} in {path}: restore it from a copy.") from error
        manifest = Manifest.from_json(content, str(path / MANIFEST))
        if manifest.digest != digest:
            raise InputRefused(
                f"{path / MANIFEST} was changed: its digest is {manifest.digest[:12]}, its name says {digest[:12]}. "
                "Restore it from a copy."
            )
        for name in manifest.files:
            _checked_name(name, f"bundle {digest[:12]}")
        return Bundle(digest, manifest, path)

    def _verify(self, bundle: Bundle) -> None:
        for name, expected in bundle.manifest.files.items():
            path = bundle.path / name
            if path.is_symlink() or not path.is_file():
                raise InputRefused(f"bundle {bundle.short}: {path} is missing or not a plain file. {MEND}")
            if sha256_file(path) != expected:
                raise InputRefused(f"bundle {bundle.short}: {path} is corrupt (its sha256 differs from the manifest). {MEND}")


def _checked_name(name: str, owner: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == MANIFEST or "\\" in name:
        raise InputRefused(f"{owner}: '{name}' is not an allowed file name inside a bundle.")
    return name


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
