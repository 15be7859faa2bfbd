"""Tests of the built wheel and of project files that `make check` does not read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent


def test_pre_commit_uses_a_version_of_ruff_that_pyproject_allows():
    (allowed,) = re.findall(r'"ruff==([\d.]+)\.\*"', (ROOT / "pyproject.toml").read_text())
    (used,) = re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert used.startswith(f"{allowed}.")


def test_ci_tests_the_lowest_versions_that_pyproject_allows():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for package in ("torch", "av"):
        (lowest,) = re.findall(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
        assert f"'{package}=={lowest}.*'" in workflow


@pytest.mark.slow
def test_the_wheel_contains_every_module_the_type_marker_and_the_page_template(tmp_path):
    source = tmp_path / "source"  # a copy, because a build writes into its folder
    shutil.copytree(ROOT / "vidm", source / "vidm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-w", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    modules = {f"vidm/{path.name}" for path in (ROOT / "vidm").glob("*.py")}
    assert modules | {"vidm/py.typed", "vidm/report.html"} <= set(ZipFile(wheel).namelist())
    version = wheel.name.split("-")[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
