"""Tests of Ctrl-C: one line and exit code 130, in every script, during imports and while processes work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
WITH_PROCESSES = """
import time
from vidm.interrupts import in_processes, one_line_on_interrupt

one_line_on_interrupt()
for number, _ in enumerate(in_processes(time.sleep, [0.01] * 8 + [0.5] * 8, workers=2)):
    if number == 7:
        print("working", flush=True)
"""


def ctrl_c_has_an_effect() -> None:
    """In a test run in the background of a shell, SIGINT is ignored, and so would it be in all processes of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=ctrl_c_has_an_effect,
    )


def test_every_script_ends_in_one_line_while_it_imports_its_modules(tmp_path: Path) -> None:
    for name in ("numpy", "torch", "PIL", "av", "tqdm"):
        (tmp_path / f"{name}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    commands = [path for path in COMMANDS if path.name != "setup.py"]
    assert len(commands) >= 11
    started = [start(path, PYTHONPATH=f"{tmp_path}:{ROOT}") for path in commands]
    for path, process in zip(commands, started, strict=True):
        assert (*process.communicate(timeout=60), process.returncode) == ("", "interrupted\n", 130), path


def test_processes_of_a_program_print_nothing_when_it_is_interrupted() -> None:
    process = start("-c", WITH_PROCESSES, PYTHONPATH=str(ROOT))
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    os.killpg(process.pid, signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "interrupted\n", 130)
