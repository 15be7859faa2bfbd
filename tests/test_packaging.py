"""Tests of the built wheel and of project files that `make check` does not read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

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


LINE = re.compile(r"([a-z0-9.-]+)==([a-z0-9.!+]+)(?: ; (.+))?")


def pins(python: str) -> dict[str, str]:
    """Return the version of each package in constraints.txt for a version of Python on 64-bit Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = LINE.fullmatch(line)
        assert match, f"not a plain name==version: {line}"
        name, version, marker = match.groups()
        if not marker or Marker(marker).evaluate(environment):
            assert name not in found
            found[name] = version
    return found


def required(section: str) -> list[Requirement]:
    """Return the requirements in a list of pyproject.toml, without those on this package's own extras."""
    (text,) = re.findall(rf"^{section} = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    return [found for word in re.findall(r'"(.+?)"', text) if (found := Requirement(word)).name != "vidm"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_name_one_version_of_every_requirement_within_its_range(python):
    known = pins(python)
    for requirement in [r for name in ("dependencies", "metrics", "dev") for r in required(name)]:
        if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
            assert requirement.specifier.contains(known[requirement.name]), requirement


def test_make_installs_the_versions_in_constraints_and_the_weekly_job_does_not():
    assert "CONSTRAINTS ?= constraints.txt" in (ROOT / "Makefile").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "schedule:" in workflow
    assert re.findall(r"make \S+ .*CONSTRAINTS=\n", workflow)
