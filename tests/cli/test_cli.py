"""What a user sees of the command line: help, near matches, one clear message, the right exit code, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import command
from toolkit.cli import main, stage_names
from toolkit.cli.arguments import quoted


def test_help_lists_every_stage_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in stage_names():
        line = next(line for line in lines if line.strip().startswith(f"{name} "))
        assert len(line.split()) > 3


def test_an_unknown_stage_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetuen"])
    assert stopped.value.code == 2
    assert "Did you mean finetune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "production"], 2, "is empty"),
        (["export"], 2, "bundle=..."),
        (["export", "bundle=production", "opsett=17"], 2, "opsett"),
        (["export", "bundle=production", "data=elvp"], 2, "elvp"),
        (["adopt", "architecture=torchvision/resnet81"], 2, "resnet18"),
        (["adopt", "architecture=torchvision/resnet18", "checkpoint=none.pth"], 2, "none.pth"),
        (["adopt", "architecture=torchvision/resnet18", "store=/proc/store"], 4, "Cannot write"),
        (["adopt", "architecture=torchvision/resnet18", "+preprocessing={size_px: [0, 0]}"], 2, "size_px"),
        (["finetune", "bundle=production", "data=shapes", "data._target_=os.system"], 2, "os.system"),
        (["finetune", "bundle=production", "data=shapes", "plugins=[no_such_module]"], 2, "no_such_module"),
        (["show", "12345678"], 2, "is empty"),
        (["ls", "store=elsewhere"], 2, "no store elsewhere"),
        (["export", "bundle=production", "data=shap"], 2, "Did you mean shapes"),
        (["adopt", "architecture=torchvision/resnet18", "checkpoint=two=3.pth#ema"], 2, "two=3.pth"),
        (["adopt", "architecture=torchvision/resnet18", "seed=abc"], 2, "seed is 'abc'; it must be a whole number"),
        (["adopt", "architecture=torchvision/resnet18", "labels=abc"], 2, "labels is 'abc'; it must be a list"),
        (["adopt", "architecture=torchvision/resnet18", "hydra.run.dir=/proc/x"], 4, "Cannot write /proc/x"),
        (["upgrade", "data=shapes", "+steps.prune.foo=1"], 2, "steps.prune.foo"),
        (["upgrade", "data=shapes", "steps.prune.target.macs=50%"], 2, "steps.prune.target.macs is '50%'"),
        (["finetune", "bundle=x", "data=shapes", "options.batch_size=8.5"], 2, "options.batch_size is 8.5"),
    ],
)
def test_wrong_input_gets_one_message_and_its_code(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capfd.readouterr()
    assert stopped.value.code == code, printed.out + printed.err
    assert said in " ".join(printed.err.split())
    assert "Traceback" not in printed.err + printed.out
    assert not (tmp_path / "store" / "bundles").exists()


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "show", "production", "hydra.verbose=true"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_plugin_of_the_users_brings_a_model(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "from toolkit.bundle import Preprocessing\n"
        "from toolkit.models import register\n"
        "def tiny(num_classes=2):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes))\n"
        "register('mine/tiny', tiny, preprocessing=Preprocessing((8, 8)))\n"
    )
    arguments = ["adopt", "architecture=mine/tiny", "labels=[a,b,c]", "plugins=[my_models]"]
    done = command(*arguments, cwd=tmp_path)
    assert done.poll() == 0, done.stdout + done.stderr
    listed = command("ls", cwd=tmp_path)
    assert "mine/tiny" in listed.stdout


def test_a_stage_that_makes_something_keeps_its_config_and_one_that_looks_leaves_nothing(tmp_path: Path) -> None:
    command("show", "production", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    command("adopt", "architecture=torchvision/resnet81", cwd=tmp_path)
    assert len(list(tmp_path.glob("runs/adopt/*/.hydra/overrides.yaml"))) == 1


def test_a_pattern_of_shards_is_text() -> None:
    assert (
        quoted("data.root=s3://bucket/{train,val}-{0000..0007}.tar") == "data.root='s3://bucket/{train,val}-{0000..0007}.tar'"
    )
    for other in ("data.root=a,b", "data.root={a: 1}", "data.root=${oc.env:HERE}", "data.labels=x{a,b}", "data.root='x{1..2}'"):
        assert quoted(other) == other
