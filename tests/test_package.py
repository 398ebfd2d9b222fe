"""The package as a whole: one name for it, one name a thing, and imports that follow the flow of data."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import exact_ntk

PACKAGE = Path(exact_ntk.__file__).parent
ROOT = Path(__file__).parents[1]
# The same name for the same thing at two levels: a command and what it calls, a kernel and its backends.
SHARED = {"cntk_pass", "self_pass", "multiply_adds_per_second", "unavailable", "myrtle_pass"}


def sources(folder: Path) -> list[Path]:
    """Every Python file, links followed."""
    return sorted(
        Path(at) / f for at, _, files in os.walk(folder, followlinks=True) for f in files if f.endswith(".py")
    )


def test_nothing_imports_the_folders_by_their_own_names():
    """In the repository's root `pipeline` and `cli` would be second copies of every class."""
    wrong = re.compile(r"^\s*(from|import) (pipeline|cli)\b|-m (pipeline|cli)\b", re.MULTILINE)
    folders = [PACKAGE, ROOT / "tests", ROOT / "benchmarks"]
    found = [path for folder in folders for path in sources(folder) if wrong.search(path.read_text())]
    assert len(sources(PACKAGE)) > 50
    assert found == []


def test_what_is_exported_is_listed_before_it_is_imported():
    code = "import exact_ntk, sys; print(set(exact_ntk.__all__) <= set(dir(exact_ntk)), 'torch' in sys.modules)"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert listed == "True False\n"


def test_one_name_is_one_thing():
    defined = defaultdict(set)
    for path in sources(PACKAGE):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                defined[node.name].add(str(path.relative_to(PACKAGE)))
    twice = {name: files for name, files in defined.items() if len(files) > 1 and name not in SHARED}
    assert twice == {}


FORBIDDEN = {
    "kernels": {"cli", "config", "settings", "data", "draws", "gram", "regression", "networks", "report", "records"},
    "gram": {"cli", "settings", "regression", "networks", "report", "records"},
    "regression": {"cli", "settings", "networks", "report", "estimators"},
    "networks": {"cli", "settings", "gram", "report"},
    "report": {"cli", "settings", "estimators"},
    "estimators": {"cli", "settings", "networks", "report"},
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_follow_the_flow(room: str):
    imported = re.compile(r"^\s*(?:from|import) exact_ntk\.(\w+)", re.MULTILINE)
    found = {(p.name, name) for p in sources(PACKAGE / room) for name in imported.findall(p.read_text())}
    assert {(file, name) for file, name in found if name in FORBIDDEN[room]} == set()


def test_only_the_command_line_imports_the_command_line():
    outside = [p for p in sources(PACKAGE) if "cli" not in p.relative_to(PACKAGE).parts]
    assert [p for p in outside if "exact_ntk.cli" in p.read_text()] == []


def test_a_users_own_package_called_pipeline_is_left_alone(tmp_path: Path):
    for name in ("pipeline", "cli", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    script = "from exact_ntk.settings import load_config; import exact_ntk.cli.main; print(load_config('digits').name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("digits\n", "")
