"""Tests of what the package exports and installs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vidm

ROOT = Path(__file__).parent.parent
SOURCE = ast.parse((ROOT / "vidm" / "__init__.py").read_text())
USED_BY_USERS = """
load_generator Generator Config SampleConfig sample_folder compute_fvd compute_vis sample_ddpm sample_ddim
sample_dpm_solver MotionGenerator ContentGenerator PositionalGroupNorm SPyNet GaussianDiffusion Trainer FrameTriplets
CollisionWorld frechet_distance index_clips show write_video
""".split()


def test_the_package_exports_what_users_call_and_editors_see_the_same_names():
    (checked,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in checked.body for alias in node.names}
    assert seen == {name: (f"vidm.{module}", name) for name, module in vidm._MODULES.items()}
    assert sorted(vidm.__all__) == sorted(USED_BY_USERS)
    for name, (module, _) in seen.items():
        assert getattr(vidm, name) is getattr(importlib.import_module(module), name)


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(vidm) == sorted([*vidm.__all__, "__version__"])


def test_the_old_name_of_animate_says_the_new_one():
    with pytest.raises(AttributeError, match=r"use Generator\.animate"):
        _ = vidm.animate


def test_the_version_has_one_source_and_needs_no_installation(tmp_path):
    assert 'attr = "vidm.__version__"' in (ROOT / "pyproject.toml").read_text()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vidm; print(vidm.__version__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == vidm.__version__


def test_every_installed_command_is_a_function_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.scripts]\n")[1].split("\n\n")[0]
    commands = dict(line.replace('"', "").split(" = ") for line in section.splitlines())
    assert sorted(commands) == ["vidm-fvd", "vidm-sample", "vidm-train"]
    for target in commands.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
