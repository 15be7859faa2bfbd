"""Tests of scripts/download_models.sh against a local server."""

import hashlib
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from file_server import file_server

from vidm import detectors

SCRIPT = Path(__file__).parent.parent / "scripts" / "download_models.sh"
I3D = "i3d_torchscript.pt"
SPYNET = "spynet_20210409-c6c1bd09.pth"
CONTENT = bytes(range(256)) * 400

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def server():
    with file_server() as server:
        server.files = {f"/good/{name}": CONTENT for name in (I3D, SPYNET)}
        yield server


def download(server, folder: Path, *names: str, sources: str = "good") -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "VIDM_MODELS": str(folder),
        "VIDM_SOURCES": " ".join(f"{server.base}/{source}" for source in sources.split()),
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run([SCRIPT, *names], env=environment, capture_output=True, text=True, timeout=60)


def test_a_model_is_downloaded_and_its_sha256_is_printed(server, tmp_path):
    done = download(server, tmp_path, "i3d")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["downloads.sha256", I3D]


def test_a_downloaded_detector_is_used_and_a_file_put_beside_it_is_not(server, tmp_path, monkeypatch):
    network = torch.nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")
    server.files[f"/good/{I3D}"] = (tmp_path / "script.pt").read_bytes()
    monkeypatch.setattr(detectors, "PRETRAINED", tmp_path / "models")
    assert download(server, tmp_path / "models", "i3d").returncode == 0
    shutil.copy(tmp_path / "script.pt", tmp_path / "models" / "c3d_ucf101.pt")
    assert detectors.load_detector().name == f"FVD (I3D {I3D})"
    assert detectors.load_classifier().name.startswith("score of random classes")


def test_the_record_of_downloads_is_not_written_to_a_pipe(server, tmp_path):
    os.mkfifo(tmp_path / "downloads.sha256")
    assert download(server, tmp_path, "i3d").returncode == 0
    assert hashlib.sha256(CONTENT).hexdigest() in (tmp_path / "downloads.sha256").read_text()


def test_an_interrupted_download_resumes(server, tmp_path):
    server.breaks_after = 5000
    assert download(server, tmp_path, "i3d").returncode == 2
    server.asked.clear()
    assert download(server, tmp_path, "i3d").returncode == 0
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert server.asked == [(f"/good/{I3D}", "bytes=5000-")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["downloads.sha256", I3D]


def test_sources_are_tried_in_order(server, tmp_path):
    done = download(server, tmp_path, "i3d", sources="bad good")
    assert done.returncode == 0
    assert [path for path, _ in server.asked] == [f"/bad/{I3D}", f"/good/{I3D}"]


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    download(server, tmp_path, "i3d")
    server.asked.clear()
    assert "exists already" in download(server, tmp_path, "i3d").stdout
    assert server.asked == []


def test_a_file_with_a_wrong_sha256_is_deleted(server, tmp_path):
    done = download(server, tmp_path, "spynet")
    assert done.returncode == 2
    assert "should begin with c6c1bd09" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_message_lists_all_files_that_no_source_has(server, tmp_path):
    done = download(server, tmp_path, "i3d", "c3d", sources="bad worse")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: could not download: {I3D} c3d_ucf101.pt. "
        f"Get the files elsewhere and put them into {tmp_path} (see its README.md)"
    ]
    assert SPYNET not in done.stdout


def test_an_unknown_name_is_an_error(server, tmp_path):
    done = download(server, tmp_path, "gpt")
    assert done.returncode == 2
    assert "unknown model gpt: choose from spynet i3d c3d motion" in done.stderr
    assert server.asked == []
