"""The house rules that a machine can hold: file and function sizes, one word for stage, script and config, no pickles."""

import ast
import re
import statistics
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "toolkit").rglob("*.py"))
STAGES = sorted(path.stem for path in (ROOT / "toolkit" / "stages").glob("*.py") if path.stem != "__init__")
FORBIDDEN_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "base", "manager", "handler"}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_over_300_lines_and_no_function_over_60(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert [f"{node.name}: {length(node)}" for node in functions(path) if length(node) > 60] == []


def test_the_median_file_and_function_stay_small() -> None:
    assert statistics.median(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES) <= 120
    assert statistics.median(length(node) for path in SOURCES for node in functions(path)) <= 12


def test_no_file_is_a_drawer() -> None:
    assert [str(p) for p in SOURCES if set(p.relative_to(ROOT).with_suffix("").parts) & FORBIDDEN_NAMES] == []


def test_every_module_and_public_function_has_a_docstring() -> None:
    bare = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree):
            bare.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert bare == []


@pytest.mark.parametrize("stage", STAGES)
def test_stage_script_and_config_share_one_word(stage: str) -> None:
    config = (ROOT / "conf" / f"{stage}.yaml").read_text(encoding="utf-8")
    assert f"_target_: toolkit.stages.{stage}.{stage}" in config
    script = (ROOT / "scripts" / f"{stage}.py").read_text(encoding="utf-8")
    assert f'"{stage}"' in script
    assert len(script.splitlines()) <= 10
    names = {node.name: node for node in functions(ROOT / "toolkit" / "stages" / f"{stage}.py")}
    assert len(names[stage].args.kwonlyargs) <= 8
    assert names[stage].args.kwarg is None


def test_no_script_or_config_without_its_stage() -> None:
    scripts = {p.stem for p in (ROOT / "scripts").glob("*.py") if not p.stem.startswith("bench_")}
    assert scripts == set(STAGES)
    assert {p.stem for p in (ROOT / "conf").glob("*.yaml")} == set(STAGES)


def test_every_config_group_ships() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = [p for p in (ROOT / "conf").rglob("*") if p.is_dir() and p.name != "__pycache__"]
    groups = {".".join(("toolkit", *p.relative_to(ROOT).parts)) for p in folders}
    packages = {"toolkit"} | {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "toolkit").rglob("__init__.py")}
    assert listed == groups | packages | {"toolkit.conf"}


def test_nothing_pickled_is_written_or_trusted() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle)\b", text, re.MULTILINE), path
        loads = [
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        ]
        for call in loads:
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert keywords.get("weights_only") == "True", f"{path}: {ast.unparse(call)}"


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(__import__("sys").executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [path for path in SOURCES if path.name not in ("__init__.py", "py.typed")]
    assert [
        str(path.relative_to(ROOT)) for path in files if f" {path.name} " not in readme and f"/{path.name} " not in readme
    ] == []
