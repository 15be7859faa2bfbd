"""Tests of the built wheel and of project files that `make check` does not read."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"  # a copy, because a build writes into its folder
    shutil.copytree(ROOT / "vidm", source / "vidm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-w", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = tmp_path.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_contains_every_module_the_type_marker_and_the_page_template(wheel):
    modules = {f"vidm/{path.name}" for path in (ROOT / "vidm").glob("*.py")}
    assert modules | {"vidm/py.typed", "vidm/report.html"} <= set(ZipFile(wheel).namelist())
    version = wheel.name.split("-")[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()


USER_SCRIPT = """
from functools import partial

import torch
from torch.utils.data import DataLoader

import vidm
from vidm.layouts import index_clips

generator = vidm.load_generator("motion.pt", "content.pt")
video = generator.animate("first.png", num_frames=16, sampler=partial(vidm.sample_ddim, eta=0.5), progress=True)
height: int = video.shape[1]
for frame in generator.stream("first.png", anchor_every=8):
    print(frame.shape)
diffusion = generator.diffusion(50)
x = vidm.sample_ddpm(diffusion, generator.model, torch.randn(1, 3, 32, 32))
losses = vidm.GaussianDiffusion(respacing=50).training_losses(generator.model, x, torch.tensor([0]))
total: float = losses["loss"].mean().item()
triplets = vidm.FrameTriplets(index_clips("data/tiny"), resolution=32, num_frames=16, seed=0)
for batch in DataLoader(triplets, batch_size=8, shuffle=True):
    print(batch["frame"].shape)
vidm.sample_folder(generator, vidm.SampleConfig(content="data/tiny", out="results"))
"""


@pytest.mark.slow
def test_mypy_accepts_a_users_script_with_the_installed_wheel_and_refuses_a_wrong_one(wheel, tmp_path):
    venv.create(tmp_path / "environment")
    python = tmp_path / "environment" / "bin" / "python"
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    ZipFile(wheel).extractall(site)
    script = tmp_path / "script.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def mypy(text: str) -> str:
        script.write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, script]
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout

    assert mypy(USER_SCRIPT) == "Success: no issues found in 1 source file\n"
    wrong = mypy(USER_SCRIPT + "video.nothing\nvidm.load_generator(3)\n")
    assert '"nothing"' in wrong
    assert 'incompatible type "int"' in wrong


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
    sections = ("dependencies", "metrics", "hub", "notebook", "dev")
    for requirement in [r for name in sections for r in required(name)]:
        if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
            assert requirement.specifier.contains(known[canonicalize_name(requirement.name)]), requirement


def test_make_installs_the_versions_in_constraints_and_the_weekly_job_does_not():
    assert "CONSTRAINTS ?= constraints.txt" in (ROOT / "Makefile").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "schedule:" in workflow
    assert re.findall(r"make \S+ .*CONSTRAINTS=\n", workflow)
