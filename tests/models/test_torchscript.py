"""A TorchScript program is loaded as what it is, computes as the model did, and may reach nothing but tensors."""

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.programs import How, load_unguarded, rewrite, write_program
from toolkit.bundle import Contract, TensorSpec
from toolkit.errors import InputRefused, UsageError
from toolkit.models import register, torchscript_program
from toolkit.models.torchscript import open_scripted
from toolkit.models.torchscript_program import FORBIDDEN, is_program, open_program, operators

IMAGES_NCHW = torch.rand(3, 3, 8, 8)


class Plain(nn.Module):
    """A program of two lines."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


class FromFile(Plain):
    """Reads the file `mark` and returns what it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3))) + torch.from_file("mark", True, 2)


class AtLoading(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * self.number

    @torch.jit.export
    def __getstate__(self) -> tuple[int, bool]:
        return (self.number, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        torch.save([torch.zeros(1)], "mark")
        self.number = state[0]
        self.training = state[1]


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A harmless program; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return write_program(Plain().eval(), tmp_path / "plain.pt")


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
def test_a_program_computes_as_its_model_did(how: How, tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    path = write_program(net.eval(), tmp_path / "net.ts", how=how, example=IMAGES_NCHW)
    program = open_program(path).eval()
    with torch.no_grad():
        assert torch.allclose(program(IMAGES_NCHW), net(IMAGES_NCHW), atol=1e-6)
    assert is_program(path)
    assert "aten::linear" in operators(program)
    assert not any(parameter.requires_grad for parameter in program.parameters())


INSERTED = {
    "call": "    torch.save(x, 'mark')\n",
    "alias": "    y = torch\n    y.save(x, 'mark')\n",
    "getattr": "    getattr(torch, 'sa' 've')(x, 'mark')\n",
    "operator": "    ops.aten.save(x, 'mark')\n",
    "alias of operators": "    y = ops\n    y.aten.save(x, 'mark')\n",
}


@pytest.mark.parametrize("form", INSERTED)
def test_a_program_that_writes_a_file_is_refused_however_it_is_spelled(form: str, plain: Path) -> None:
    def insert(name: str, content: bytes) -> bytes:
        return (
            content.replace(b"    fc = self.fc", INSERTED[form].encode() + b"    fc = self.fc")
            if name.endswith(".py")
            else content
        )

    path = rewrite(plain, Path("evil.pt"), insert)
    with pytest.raises(InputRefused, match=r"evil\.pt.*'save', which writes a file.*was not run"):
        open_program(path)
    assert not Path("mark").exists()
    load_unguarded(path)(IMAGES_NCHW)
    assert Path("mark").exists(), "the payload must be a working one"


@pytest.mark.parametrize("form", INSERTED)
def test_what_the_source_would_hide_shows_in_the_graph(form: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def insert(name: str, content: bytes) -> bytes:
        return (
            content.replace(b"    fc = self.fc", INSERTED[form].encode() + b"    fc = self.fc")
            if name.endswith(".py")
            else content
        )

    monkeypatch.setattr(torchscript_program, "_require_pure_source", lambda *_: None)
    with pytest.raises(InputRefused, match=r"method forward calls aten::save"):
        open_program(rewrite(plain, Path("evil.pt"), insert))
    assert not Path("mark").exists()


def test_a_program_that_reads_a_file_is_refused(plain: Path) -> None:
    path = write_program(FromFile().eval(), Path("reads.pt"))
    with pytest.raises(InputRefused, match="from_file"):
        open_program(path)
    assert not Path("mark").exists()


def test_a_program_that_runs_at_loading_is_refused_before_it_is_loaded(plain: Path) -> None:
    path = write_program(AtLoading().eval(), Path("loads.pt"))
    Path("mark").unlink(missing_ok=True)
    with pytest.raises(InputRefused, match="runs code when it is loaded"):
        open_program(path)
    assert not Path("mark").exists()
    load_unguarded(path)
    assert Path("mark").exists(), "the payload must be a working one"


class Exploit:
    """Pickles to a call of `os.system` that would create a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch mark",)


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_dressed_as_a_program_runs_nothing(record: str, protocol: int, plain: Path) -> None:
    payload = pickle.dumps(Exploit(), protocol=protocol)
    path = rewrite(plain, Path("evil.pt"), lambda name, content: payload if name == record else content)
    with pytest.raises(InputRefused, match=rf"{record}"):
        open_program(path)
    assert not Path("mark").exists()
    pickle.loads(payload)
    assert Path("mark").exists(), "the payload must be a working one"


def test_other_operators_and_native_classes_are_refused(plain: Path) -> None:
    for line, reason in (
        (b"    y = ops.quantized.relu6(x)\n", "operators of 'quantized'"),
        (b"    y = torch.classes.quantized.Conv2dPackedParamsBase\n", "native classes"),
    ):
        path = rewrite(
            plain,
            Path("other.pt"),
            lambda name, content, line=line: (
                content.replace(b"    fc = self.fc", line + b"    fc = self.fc") if name.endswith(".py") else content
            ),
        )
        with pytest.raises(InputRefused, match=reason):
            open_program(path)


def test_every_operator_of_torch_that_takes_a_file_is_forbidden() -> None:
    """A later torch may bring another one."""
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(("aten::", "prim::"))]
    assert len(schemas) > 1000
    texts = [(s.name, a.name) for s in schemas for a in s.arguments if "str" in str(a.type)]
    takes_file = {operator for operator, argument in texts if "file" in argument or "path" in argument}
    assert {name.partition("::")[2] for name in takes_file} <= set(FORBIDDEN)
    assert takes_file >= {"aten::save", "aten::from_file"}


def test_damage_gives_the_one_error_that_names_the_file(plain: Path) -> None:
    original, dice = plain.read_bytes(), random.Random(0)
    for share in (0.0, 0.3, 0.9, 0.99):
        plain.write_bytes(original[: int(share * len(original))])
        with pytest.raises(InputRefused, match=r"plain\.pt"):
            open_program(plain)
    for _ in range(40):
        content = bytearray(original)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        plain.write_bytes(content)
        try:
            open_program(plain)(IMAGES_NCHW)
        except InputRefused as refusal:
            assert "plain.pt" in str(refusal)  # noqa: PT017 (either outcome is right)


def test_a_contract_that_is_no_classifiers_is_refused(plain: Path) -> None:
    image = TensorSpec("x", "complex64", ("batch", 3, 8, 8), "NCHW", "pixels")
    scores = TensorSpec("scores", "float32", ("batch", 2), "NK", "logits")
    for contract in (Contract(), Contract((image,), (scores,))):
        with pytest.raises(InputRefused, match="contract"):
            open_scripted(plain, contract)


def test_the_key_cannot_be_registered() -> None:
    for key in ("torchscript", "onnx"):
        with pytest.raises(UsageError, match=key):
            register(key, Plain)
