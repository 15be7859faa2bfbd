"""The rules of ARCHITECTURE.md: its tables are the specification, and the imports follow them."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vidm

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
ROW = re.compile(r"^\| (\w+) \| ?(.*?) ?\|$", re.MULTILINE)
# A section's rows: the allowed imports first, then one table of files for each topic.
SECTIONS = re.split(r"^##+ (.+)$", PAGE, flags=re.MULTILINE)
TABLES = {name: ROW.findall(text) for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)}
ALLOWED = {topic: set(names.split(", ")) - {""} for topic, names in TABLES["Topics"] if topic != "topic"}
TOPIC = {file: topic for topic in ALLOWED for file, _ in TABLES[topic] if file != "file"}
FILES = sorted(p.stem for p in (ROOT / "vidm").glob("*.py") if p.stem != "__init__")
USES_CONFIG = {
    *("cli", "cli_flags"),
    *("class_choice", "generator", "sampling", "sample_report"),
    *("checkpoint", "checkpoint_formats", "resume", "config_file"),
    *("trainer", "training_run", "training_data", "validation"),
}
MAX_LINES = 330
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
# The public functions that take an evaluation's settings one by one.
MANY_PARAMETERS = {"compute_fvd", "compute_vis", "compute_frame_metrics", "drift"}


@cache
def imports(file: str) -> frozenset[str]:
    """Every module that a file of the package imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "vidm" / f"{file}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            module = node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Name):
            assert node.id not in ("import_module", "__import__"), f"{file} imports a module by a computed name"
    return frozenset(found)


def own_imports(file: str) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("vidm.")} & set(FILES)


def test_every_file_belongs_to_one_topic_and_has_a_description():
    assert sorted(TOPIC) == FILES
    listed = [file for topic in ALLOWED for file, _ in TABLES[topic] if file != "file"]
    assert len(listed) == len(set(listed))
    assert all(text.endswith(".") for topic in ALLOWED for file, text in TABLES[topic] if file != "file")


def test_imports_have_no_cycle():
    order = list(TopologicalSorter({file: own_imports(file) for file in FILES}).static_order())
    assert sorted(order) == FILES


@pytest.mark.parametrize("file", FILES)
def test_a_topic_imports_only_the_topics_in_its_row(file):
    for used in own_imports(file):
        assert TOPIC[used] in ALLOWED[TOPIC[file]] | {TOPIC[file]}, f"{file} imports {used} of {TOPIC[used]}"


@pytest.mark.parametrize("file", FILES)
def test_torch_distributed_is_imported_in_one_file(file):
    distributed = [name for name in imports(file) if name.startswith("torch.distributed")]
    assert not distributed or file == "distributed"


def test_only_the_listed_files_use_a_configuration():
    assert {file for file in FILES if "config" in own_imports(file)} <= USES_CONFIG


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_short(file):
    source = (ROOT / "vidm" / f"{file}.py").read_text()
    assert len(source.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name
            parameters = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
            assert len(parameters) <= MAX_PARAMETERS or node.name in MANY_PARAMETERS, node.name


def test_there_is_no_file_for_miscellaneous_helpers():
    assert not {"utils", "util", "helpers", "common", "misc"} & set(FILES)


def test_every_exported_name_exists():
    for name in vidm.__all__:
        assert getattr(vidm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vidm.nothing


def test_importing_the_package_or_the_world_loads_no_torch():
    code = "import sys, vidm, vidm.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
