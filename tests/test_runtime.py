"""Tests of memory on a CPU and of provenance."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from conftest import pytest_configure

from vidm import cli
from vidm.checkpoint import build_model
from vidm.generator import Generator
from vidm.runtime import (
    check_bfloat16,
    exit_on_user_error,
    explain_no_deterministic_algorithm,
    explain_out_of_memory,
    provenance,
    use_deterministic_algorithms,
    versions_of,
)
from vidm.sample_config import SampleConfig
from vidm.trainer import Trainer

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


def test_gpus_are_hidden_unless_only_tests_marked_gpu_are_chosen(monkeypatch, pytestconfig):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    for chosen, left in (("gpu", "0,1"), ("", ""), ("not slow", ""), ("not gpu", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        monkeypatch.setattr(pytestconfig.option, "markexpr", chosen)
        pytest_configure(pytestconfig)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def fake_gpu(monkeypatch, has_bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_bfloat16_is_refused_on_a_gpu_that_only_emulates_it(monkeypatch, tiny, precision):
    gpu, message = torch.device("cuda"), f"precision {precision}: Tesla T4 only emulates .* use .*precision fp16"
    fake_gpu(monkeypatch, False)
    with pytest.raises(ValueError, match=message):
        check_bfloat16(gpu, precision)
    with pytest.raises(ValueError, match=message):
        Trainer(tiny.replaced({"precision": "bf16"}), gpu) if precision == "bf16" else sampling_on(gpu, tiny, precision)
    check_bfloat16(torch.device("cpu"), precision)
    check_bfloat16(gpu, "fp16")
    fake_gpu(monkeypatch, True)
    check_bfloat16(gpu, precision)


def sampling_on(device, config, precision):
    Generator(build_model(config), config, device, Path()).check(SampleConfig(precision=precision))


@pytest.mark.parametrize(
    "message",
    [
        "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory. Tried to",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_gpu_without_memory_is_recognised_by_what_libraries_say(message):
    with (
        pytest.raises(ValueError, match=r"^out of memory: clips do not fit; give less$"),
        explain_out_of_memory("clips", "give less"),
    ):
        raise RuntimeError(message)


@pytest.fixture
def restored():
    """A process in which an earlier choice of algorithms is restored after the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        patch.delenv("CUBLAS_WORKSPACE_CONFIG")
        yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_a_deterministic_algorithm_is_named(restored):
    use_deterministic_algorithms()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    message = "^--deterministic: put_ .*does not have a deterministic implementation; leave the flag out"
    with pytest.raises(ValueError, match=message), explain_no_deterministic_algorithm():
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="another"), explain_no_deterministic_algorithm():
        raise RuntimeError("another")


def test_a_workspace_of_cublas_that_is_not_deterministic_is_named(restored, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match="--deterministic: CUBLAS_WORKSPACE_CONFIG is :0:0: unset it"):
        use_deterministic_algorithms()


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({}, False),
        ({"flow_range": "none"}, True),
        ({"generator": "content"}, True),
        ({"spynet": "given.pth"}, True),
        ({"spynet": "given.pth", "train_flow": True}, False),
    ],
)
def test_on_a_gpu_only_a_frozen_spynet_is_deterministic(monkeypatch, restored, tiny, values, accepted):
    def reached(_):
        raise LookupError("the settings are accepted")

    monkeypatch.setattr("vidm.trainer.TrainingData", reached)
    config = tiny.replaced({"deterministic": True, **values})
    expected, message = (LookupError, "accepted") if accepted else (ValueError, "SPyNet is trained, .* spynet FILE")
    with pytest.raises(expected, match=message):
        Trainer(config, torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled() == accepted
    with pytest.raises(LookupError, match="accepted"):
        Trainer(config, torch.device("cpu"))


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


def test_a_pipe_whose_reader_has_seen_enough_ends_a_command_without_a_word():
    code = (
        "from vidm.runtime import exit_on_user_error\nwith exit_on_user_error():\n print(*['line'] * 99999, sep='\\n')"
    )
    command = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" | head -1; exit ${{PIPESTATUS[0]}}', code],
        capture_output=True,
        text=True,
    )
    assert (command.returncode, command.stdout, command.stderr) == (1, "line\n", "")
