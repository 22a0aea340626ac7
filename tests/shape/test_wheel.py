"""What a user installs: the wheel ships the configs and the command works outside the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_config_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"toolkit/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "toolkit").rglob("*.j2")}
    assert expected
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "conf/"))]


@pytest.mark.slow
def test_the_installed_command_composes_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(environment)], check=True)
    python = environment / "bin" / "python"
    parent = next(p for p in sys.path if p.endswith("site-packages"))
    (next(environment.glob("lib/python*/site-packages")) / "parent.pth").write_text(parent + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], check=True)
    command = [str(environment / "bin" / "toolkit"), "upgrade", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_target_: toolkit.stages.upgrade.upgrade" in done.stdout
    where = "import toolkit, toolkit.conf; print(toolkit.__file__, *toolkit.conf.__path__)"
    located = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(ROOT) not in located
