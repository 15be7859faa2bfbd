"""The order of the rooms: ARCHITECTURE.md's table is the truth, and the imports keep to it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vidm

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| *(\d+) *\| *(\w+) *\| *(.+?) *\| *(.*?) *\|$", re.MULTILINE)
ROOMS = {
    file: (int(floor), names.split()) for floor, file, _, names in ROW.findall((ROOT / "ARCHITECTURE.md").read_text())
}
FILES = sorted(p.stem for p in (ROOT / "vidm").glob("*.py") if p.stem != "__init__")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_the_table_lists_every_file_and_no_other():
    assert sorted(ROOMS) == FILES


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_lower_floors(file):
    for module in imports(ROOT / "vidm" / f"{file}.py"):
        used = module.removeprefix("vidm.").split(".")[0]
        if module.startswith("vidm.") and used in ROOMS:
            assert ROOMS[used][0] < ROOMS[file][0], f"{file} imports {used}, which is not on a lower floor"


@pytest.mark.parametrize("file", FILES)
def test_torch_distributed_is_imported_in_one_place(file):
    distributed = [m for m in imports(ROOT / "vidm" / f"{file}.py") if m.startswith("torch.distributed")]
    assert not distributed or file == "distributed"


@pytest.mark.parametrize("file", FILES)
def test_public_names_of_the_table_exist(file):
    module = importlib.import_module(f"vidm.{file}")
    for name in ROOMS[file][1]:
        assert hasattr(module, name), f"vidm.{file} has no {name}"


@pytest.mark.parametrize("file", FILES)
def test_a_file_stays_readable(file):
    assert len((ROOT / "vidm" / f"{file}.py").read_text().splitlines()) <= 330


def test_the_package_re_exports_what_it_says():
    for name in vidm.__all__:
        assert getattr(vidm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vidm.nothing


def test_importing_the_package_loads_no_torch():
    code = "import sys, vidm, vidm.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
