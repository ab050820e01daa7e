"""The folders are floors: imports run down from one to the next, and never in a circle within one."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.fixtures import REPOSITORY as HOME

SCRIPTS = "scripts"  # the files of the top level; they may call one another
FLOORS = (  # lowest first; folders of one floor do not know each other
    {"utils"},
    {"geometry"},
    {"data"},
    {"models"},
    {"scoring"},
    {"faces"},
    {"training"},
    {"retrieval", SCRIPTS},
    {"experiments"},
    {"tools"},
)
HEIGHT = {folder: height for height, floor in enumerate(FLOORS) for folder in floor}
FILES = [*HOME.glob("*.py"), *(path for path in HOME.glob("[!.]*/**/*.py") if not path.is_relative_to(HOME / "tests"))]
MODULES = {".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def folder_of(module: str) -> str:
    return SCRIPTS if (HOME / f"{module}.py").exists() else module.partition(".")[0]


def imports_of(path: Path) -> set[str]:
    """The modules of this repository that a file imports, at its top or further in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    own = folder_of(module)
    others = {other: folder_of(other) for other in imports_of(MODULES[module])}
    climbing = [other for other, folder in others.items() if folder != own and HEIGHT[folder] >= HEIGHT[own]]
    assert not climbing, f"{module} imports {', '.join(climbing)}"


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter({module: imports_of(path) - {module} for module, path in MODULES.items()}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_scripts_start_without_packages_that_single_features_need():
    missing = ["av", "gradio", "matplotlib", "segmentation_models_pytorch", "timm"]
    scripts = sorted(path.stem for path in HOME.glob("*.py"))
    program = f"import sys; sys.modules.update(dict.fromkeys({missing})); import {', '.join(scripts)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
