"""Tests of memory on a CPU and of provenance."""

import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
import torch

from vidm import cli
from vidm.runtime import exit_on_user_error, provenance, versions_of

FAULTS = """
import resource, sys, torch
from vidm.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for kept in sys.argv[1:]:
    assert keep_freed_memory(kept == "kept")
for _ in range(16):  # until the heap has grown to its size
    faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_kept_memory_is_reused_without_page_faults():
    def faults(*settings: str) -> int:
        command = [sys.executable, "-c", FAULTS, *settings]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    kept, returned = faults("kept"), faults("returned")
    assert kept < 0.01 * returned
    assert faults("kept", "returned") == pytest.approx(returned, rel=0.01)


@pytest.mark.parametrize(("work", "flags"), [(cli._train, ""), (cli._sample, "--test --content missing")])
def test_the_scripts_keep_freed_memory_only_on_a_cpu(monkeypatch, work, flags):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append(True))
    options = cli.parse_flags(["--resume", "missing.pt", *flags.split()])
    for device in ("cuda", "cpu"):
        with pytest.raises(SystemExit):
            work(torch.device(device), options)
        assert called == [True] * (device == "cpu")


def test_a_name_without_a_version_is_left_out_or_described():
    assert versions_of(["python", "torch"]) == {"python": platform.python_version(), "torch": torch.__version__}
    assert versions_of(["no-such-package", "cuda"]) == ({"cuda": torch.version.cuda} if torch.version.cuda else {})
    assert versions_of(["no-such-package"], missing="not installed") == {"no-such-package": "not installed"}


def test_provenance_contains_date_versions_and_device():
    found = provenance(["torch", "no-such-package"])
    assert found["versions"] == {"torch": torch.__version__, "no-such-package": "not installed"}
    assert found["device"] == "cpu"
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(found["date"])) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "error: out of memory (Unable to allocate 9 GiB): use smaller"),
        (MemoryError(), "error: out of memory (MemoryError): use smaller"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory (CUDA out of memory. Tried)"),
        (
            RuntimeError(
                "Caught _ArrayMemoryError in worker 0.\nTraceback:\nnumpy._ArrayMemoryError: Unable to allocate"
            ),
            "error: out of memory (Unable to allocate)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "error: out of memory (DefaultCPUAllocator: can't",
        ),
    ],
)
def test_memory_that_runs_out_anywhere_is_reported_in_one_line(capsys, error, line):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(line)


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="expected 3 channels"), exit_on_user_error():
        raise RuntimeError("expected 3 channels")
