"""Tests of the documents: commands parse, the first run works, links and test names exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vidm.cli import parse_flags
from vidm.evaluate_flags import evaluate_parser, evaluate_vis_parser
from vidm.video_io import FRAME_SUFFIXES, VIDEO_SUFFIXES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)
BLOCKS = FENCED.findall(README)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
GUIDE_FILES = [*(ROOT / "docs").rglob("*.md"), ROOT / "pretrained_models" / "world" / "README.md"]
GUIDES = [line for path in GUIDE_FILES for b in FENCED.findall(path.read_text()) for line in b.splitlines()]
PARSERS = {
    "diffusion_ddp_accum_constant_cu.py": parse_flags,
    "evaluate_FVD.py": evaluate_parser().parse_args,
    "scripts/evaluate_VIS.py": evaluate_vis_parser().parse_args,
}


@pytest.mark.parametrize("command", [c for c in COMMANDS + GUIDES if any(script in c for script in PARSERS)])
def test_every_command_of_a_main_script_parses(command):
    words = shlex.split(command)
    (place,) = [i for i, word in enumerate(words) if word in PARSERS]
    PARSERS[words[place]](words[place + 1 :])


@pytest.mark.parametrize("command", [c for c in GUIDES if c.startswith("scripts/train_multinode.sh")])
def test_every_command_for_several_nodes_parses(command):
    nodes, endpoint, *flags = shlex.split(command)[1:]
    assert re.fullmatch(r"\d+(:\d+)?", nodes)
    assert re.fullmatch(r"\w+:\d+", endpoint)
    parse_flags(flags)


@pytest.mark.parametrize("command", [c for c in COMMANDS + GUIDES if "--data data/CLEVRER " in c])
def test_every_split_of_clevrer_in_a_command_is_created_by_the_download(command):
    script = (ROOT / "scripts" / "download_clevr_dataset.sh").read_text()
    made = set(re.findall(r"echo (\w+) ;;", script))
    assert made == {"train", "val", "test"}
    assert set(re.findall(r"split (\w+)", command)) <= made


def test_every_other_command_runs_a_known_script():
    others = [c for c in COMMANDS if not any(script in c for script in PARSERS)]
    ours = ("make_synthetic_dataset", "convert_checkpoint", "pack_dataset")
    known = ("source .venv", "scripts/download", *(f"python scripts/{name}.py" for name in ours))
    assert all(c.startswith(known) for c in others)


def test_every_link_to_a_file_exists():
    names = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
    documents = [*(ROOT / name for name in names), *GUIDE_FILES]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                nearby = (document.parent / target, ROOT / "vidm" / target)
                assert any(path.exists() for path in nearby), f"{document.name}: {target}"


def rows_that_name_a_test(page: str) -> list[str]:
    """The rows of the tables whose last column is `test`, without their headings."""
    tables = re.findall(r"^\|.* test \|\n\|[-:| ]+\|\n((?:\|.*\n)+)", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


@pytest.mark.parametrize("page", ["fidelity.md", "datasets.md"])
def test_every_test_that_a_table_names_exists(page):
    named = {name for row in rows_that_name_a_test(page) for name in re.findall(r"\btest_\w+", row)}
    defined = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 10
    assert named <= defined


def test_the_fidelity_table_names_a_test_of_each_of_the_three_strategies():
    rows = (ROOT / "docs" / "fidelity.md").read_text().splitlines()
    for strategy in ("positional group normalization", "robustness penalty", "sampling space truncation"):
        (row,) = [row for row in rows if row.startswith(f"| {strategy} |")]
        assert re.search(r"test_\w+", row)


@pytest.mark.parametrize("page", ["fidelity.md", "datasets.md"])
def test_every_row_of_a_table_names_a_test_or_is_not_verifiable(page):
    for row in rows_that_name_a_test(page):
        assert re.search(r"test_\w+ \|$|not verifiable from public material \|$", row), row


def test_the_table_of_formats_lists_every_suffix_that_is_read():
    words = {word for row in rows_that_name_a_test("datasets.md") for word in re.findall(r"\w+", row.split("|")[1])}
    assert {suffix[1:] for suffix in (*VIDEO_SUFFIXES, *FRAME_SUFFIXES)} <= words


@pytest.mark.slow
def test_the_first_run_by_hand_works(tmp_path):
    (block,) = [b for b in BLOCKS if "--out data/tiny" in b]
    for name in ("diffusion_ddp_accum_constant_cu.py", "evaluate_FVD.py", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in block.splitlines():
        if command.startswith("python "):
            words = [sys.executable, *shlex.split(command)[1:]]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "not an FVD" in done.stdout
    assert len(list((tmp_path / "results" / "tiny").glob("*.mp4"))) == 3
