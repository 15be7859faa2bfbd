"""Fixtures of several test files. Each test process uses one thread, so that several can run in parallel."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidm.config import Config
from vidm.world import write_dataset

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, also from processes that tests start, unless only tests marked `gpu` are chosen: -m gpu."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` unless there is a GPU that is not hidden."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and pytest -m gpu"))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests use their own cache folder instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_run_survives_its_test() -> Iterator[None]:
    """A run that a failed test leaves behind would slow down all later ones."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 videos of the embedded world, 16 frames of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("world")
    write_dataset(folder, num_videos=12, num_frames=16, resolution=32, seed=7, progress=False)
    return folder


@pytest.fixture
def tiny(world: Path, tmp_path: Path) -> Config:
    """The tiny preset at 16 x 16 pixels, for four steps of 4 samples from `world`; it writes to tmp_path / "run"."""
    values = {
        "image_size": 16,
        "batch_size": 4,
        "data": str(world),
        "out": str(tmp_path / "run"),
        "total_iters": 4,
        "workers": 0,
        "precision": "fp32",
        "print_freq": 1,
        "test_freq": 0,
        "save_freq": 2,
    }
    return Config.from_preset("tiny").replaced(values)
