"""Where a checkpoint comes from: a file, a file inside an installed package, or a library's published weights.

Only `torchvision:<entry>` and `timm:pretrained` ever reach the network, because the user wrote so; what they fetch is a
file in the library's own cache, checked against the hash in its name or by the hub, and read like any other file.
"""

import contextlib
import hashlib
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from toolkit.bundle import Architecture, Preprocessing
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError, missing_extra, unknown_name
from toolkit.migration.reading import SUFFIXES
from toolkit.models import torchvision_models

PACKAGE, TORCHVISION, TIMM = "package:", "torchvision:", "timm:"
HUB_FILE = "model.safetensors"
TIMEOUT_S = 10


@dataclass(frozen=True)
class Source:
    """A checkpoint file, the entry of it to take (empty: find it), and what its origin says about images and arguments."""

    path: Path
    entry: str = ""
    preprocessing: Preprocessing | None = None
    transform_input: bool = False


def find_source(checkpoint: Path | str, architecture: Architecture) -> Source:
    """The file that `checkpoint` means for `architecture`.

    `<path>`, `package:<distribution>[/<file>]`, `torchvision:<entry>` (`IMAGENET1K_V1`, `DEFAULT`) or `timm:pretrained`;
    `#<entry>` after a path or package takes one part of a file. Raises `UsageError`, and `EnvironmentProblem` for a package
    that is not installed or a download that fails.
    """
    text = str(checkpoint)
    if text.startswith(TORCHVISION):
        return _torchvision(text.removeprefix(TORCHVISION), architecture)
    if text.startswith(TIMM):
        return _timm(text.removeprefix(TIMM), architecture)
    text, _, entry = (text, "", "") if Path(text).exists() else text.partition("#")
    path = _in_package(text.removeprefix(PACKAGE)) if text.startswith(PACKAGE) else Path(text)
    return _recognised(path, entry, architecture)


def fetch(url: str, directory: Path) -> Path:
    """Download `url`, whose name ends in `-<beginning of its sha256>.<suffix>`, into `directory`; a file there is taken.

    Raises `EnvironmentProblem` when the network refuses and `InputRefused` for content that is not what the name says.
    """
    name = url.rpartition("/")[2]
    path = directory / name
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in(name), progress=os.isatty(2))
        except (urllib.error.URLError, OSError) as error:
            raise EnvironmentProblem(
                f"Cannot download {url} ({error}). Download it where there is a network and put it at {path}."
            ) from error
        except RuntimeError as error:  # torch's word for a wrong hash
            raise InputRefused(f"{url}: the download is damaged ({error}). Try again.") from error
    expected = _hash_in(name)
    with path.open("rb") as stream:
        if expected and not hashlib.file_digest(stream, "sha256").hexdigest().startswith(expected):
            raise InputRefused(f"{path} is damaged: its sha256 does not begin with {expected}. Delete it and try again.")
    return path


def _hash_in(name: str) -> str | None:
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found.group(1) if found else None


def _torchvision(entry: str, architecture: Architecture) -> Source:
    library, _, name = architecture.key.partition("/")
    if library != "torchvision":
        raise UsageError(
            f"checkpoint {TORCHVISION}{entry} belongs to torchvision/ models; the architecture is {architecture.key}."
        )
    weights = torchvision_models.weights_named(name, entry)
    if weights is None:
        raise UsageError(f"torchvision publishes no weights for {name}; give a file.")
    path = fetch(weights.url, Path(torch.hub.get_dir()) / "checkpoints")
    return _recognised(path, "", architecture)


def _timm(tag: str, architecture: Architecture) -> Source:
    library, _, name = architecture.key.partition("/")
    if library != "timm":
        raise UsageError(f"checkpoint {TIMM}{tag} belongs to timm/ models; the architecture is {architecture.key}.")
    if tag != "pretrained":
        raise UsageError(f"checkpoint {TIMM}{tag}: write {TIMM}pretrained; a tag belongs to the architecture ({name}.<tag>).")
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm", "A timm/ model") from error
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.hf_hub_id:
        return Source(_from_hub(published.hf_hub_id))
    if published is not None and isinstance(published.url, str) and published.url:
        return Source(fetch(published.url, Path(torch.hub.get_dir()) / "checkpoints"))
    raise UsageError(f"timm publishes no weights for {name}; give a file.")


def _from_hub(repository: str) -> Path:
    """The weights of a hub repository, from the local cache where they are in it."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        with contextlib.suppress(urllib.error.HTTPError):  # any answer will do; the client itself would retry for long
            urllib.request.urlopen(constants.ENDPOINT, timeout=TIMEOUT_S).close()
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the hub's client raises its HTTP library's errors, which differ between versions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentProblem(
            f"Cannot download {repository} from the Hugging Face hub ({first}). Where there is a network, run "
            f"`hf download {repository} {HUB_FILE}` and give that file as checkpoint."
        ) from error


def _recognised(path: Path, entry: str, architecture: Architecture) -> Source:
    """torchvision's published files are known by name: each entry has its own preprocessing and input convention."""
    library, _, name = architecture.key.partition("/")
    if library != "torchvision":
        return Source(path, entry)
    published = torchvision_models.published_as(name, path.name)
    if published is None:
        return Source(path, entry)
    return Source(path, entry, torchvision_models.preprocessing(name, published), name in torchvision_models.TRAINING_ONLY)


def _in_package(text: str) -> Path:
    name, _, wanted = text.partition("/")
    try:
        listed = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise EnvironmentProblem(f"The package '{name}' is not installed. Install it with: pip install {name}") from error
    files = {file.as_posix(): Path(str(file.locate())) for file in listed if file.suffix in SUFFIXES}
    if wanted:
        matches = [path for key, path in files.items() if key == wanted or key.endswith(f"/{wanted}")]
        if len(matches) != 1:
            raise unknown_name(f"checkpoint in the package {name}", wanted, files)
        return matches[0]
    if len(files) != 1:
        held = (
            f"{len(files)} checkpoints: choose one, {PACKAGE}{name}/<file>: {', '.join(sorted(files)[:5])}" if files else "none"
        )
        raise UsageError(f"The package '{name}' holds {held}.")
    return next(iter(files.values()))
