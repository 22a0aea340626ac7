"""Images in S3, spoken to over HTTP: moto serves it on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from toolkit.bundle import Preprocessing
from toolkit.data import load_pixels
from toolkit.data.folder import folder
from toolkit.errors import EnvironmentProblem, InputRefused

moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
s3fs = pytest.importorskip("s3fs", reason="needs the extra s3")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "machine"))
    s3fs.S3FileSystem.clear_instance_cache()
    yield url
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.mark.usefixtures("credentials")
def test_a_bucket_gives_the_data_set_of_the_folder(endpoint: str, class_folder: Callable[..., Path]) -> None:
    root = class_folder()
    system = s3fs.S3FileSystem()
    system.mkdir("photos")
    system.put(str(root), "photos/pets", recursive=True)
    local, remote = folder(root), folder("s3://photos/pets")
    assert [(s.key, s.target, s.split) for s in remote.samples] == [(s.key, s.target, s.split) for s in local.samples]
    assert remote.fingerprint() == local.fingerprint()
    spec = Preprocessing(size_px=(8, 8))
    assert np.array_equal(load_pixels(remote, spec).images_NCHW, load_pixels(local, spec).images_NCHW)
    with pytest.raises(InputRefused, match=r"s3://photos/pats holds no files"):
        folder("s3://photos/pats")
    with pytest.raises(InputRefused, match=r"s3://nobucket/pets (is not there|holds no files)"):
        folder("s3://nobucket/pets")


def test_no_credentials_are_one_clear_error(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentProblem, match=r"s3://photos/pets cannot be read: no credentials.*AWS_ACCESS_KEY_ID"):
        folder("s3://photos/pets")
