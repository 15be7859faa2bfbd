"""The distance between two folders: what it is, what it does not depend on, and what it says when it cannot be had."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.detectors import load_detector
from vidm.frechet import FeatureStats, frechet_distance
from vidm.metrics import compute_fvd
from vidm.video_io import write_video


class StubDetector:
    """Five numbers a clip, from float64 arithmetic on its pixels: brightness, colour balance, motion, first, last."""

    name = "stub"

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, clips_u8: np.ndarray | torch.Tensor) -> torch.Tensor:
        clips = torch.as_tensor(clips_u8).double() / 255
        self.batches.append(tuple(clips.shape))
        red, blue = clips[..., 0].mean(dim=(1, 2, 3)), clips[..., 2].mean(dim=(1, 2, 3))
        motion = clips.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))
        first, last = clips[:, 0, 0, 0, 0], clips[:, -1, 0, 0, 0]
        return torch.stack([clips.mean(dim=(1, 2, 3, 4)), red - blue, motion, first, last], dim=1)


def drifting_clips(n: int, seed: int, frames: int = 6, size: int = 16) -> np.ndarray:
    """Smooth random pictures (n, frames, size, size, 3) that drift sideways by a pixel a frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 1, size // 4, size // 4, 3), dtype=np.uint8)
    picture = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return np.concatenate([np.roll(picture, t, axis=3) for t in range(frames)], axis=1)


def write_folder(folder: Path, clips: np.ndarray) -> Path:
    folder.mkdir()
    for i, clip in enumerate(clips):
        write_video(folder / f"{i:03d}.npy", clip)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("videos")
    return (
        write_folder(root / "real", drifting_clips(11, seed=0)),
        write_folder(root / "fake", drifting_clips(7, seed=1) // 2),
    )


def test_the_number_is_the_frechet_distance_of_all_features_over_n(folders: tuple[Path, Path]) -> None:
    moments = []
    for clips in (drifting_clips(11, seed=0), drifting_clips(7, seed=1) // 2):
        features = StubDetector()(clips[:, :4]).numpy()
        moments += [features.mean(axis=0), np.cov(features.T, ddof=0)]
    result = compute_fvd(*folders, StubDetector(), num_frames=4)
    assert result.value == pytest.approx(frechet_distance(*moments), rel=1e-9)
    assert (result.name, result.num_samples, result.feature_dim, result.num_frames) == ("stub", (11, 7), 5, 4)
    assert (result.resolution, result.skipped) == (None, ())


def test_a_folder_is_at_zero_from_itself_and_not_from_another(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation that users had before read the real folder twice, and its number was always near 0."""
    real, fake = folders
    assert compute_fvd(real, real, StubDetector(), num_frames=6).value < 1e-9
    assert "warning: both folders are" in capsys.readouterr().err
    assert compute_fvd(real, fake, StubDetector(), num_frames=6).value > 0.01
    assert capsys.readouterr().err == ""


def test_the_two_folders_may_change_places(folders: tuple[Path, Path]) -> None:
    there = compute_fvd(*folders, StubDetector(), num_frames=6).value
    back = compute_fvd(*folders[::-1], StubDetector(), num_frames=6).value
    assert there == pytest.approx(back, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_the_batch_size_changes_nothing_and_the_last_partial_batch_counts(
    folders: tuple[Path, Path], batch_size: int
) -> None:
    stub = StubDetector()
    result = compute_fvd(*folders, stub, num_frames=6, batch_size=batch_size)
    assert result.value == pytest.approx(compute_fvd(*folders, StubDetector(), num_frames=6).value, rel=1e-9)
    assert sum(shape[0] for shape in stub.batches) == 11 + 7
    assert max(shape[0] for shape in stub.batches) <= batch_size


def test_with_the_random_detector_the_batch_size_changes_nothing_either(folders: tuple[Path, Path]) -> None:
    detector = load_detector("random")
    small, large = (compute_fvd(*folders, detector, num_frames=6, batch_size=size) for size in (3, 32))
    assert small.value == pytest.approx(large.value, rel=1e-4)
    assert small.value > 0.1
    assert "not an FVD" in small.name


def test_file_names_and_workers_change_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(real.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"{i:03d}.npy")
    expected = compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert compute_fvd(renamed, fake, StubDetector(), num_frames=6).value == pytest.approx(expected, rel=1e-9)
    assert compute_fvd(real, fake, StubDetector(), num_frames=6, workers=3).value == expected


def test_videos_and_folders_of_frames_measure_alike(folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    frames = tmp_path / "frames"
    for i, clip in enumerate(drifting_clips(11, seed=0)):
        write_video(frames / f"{i:03d}", clip)
    expected = compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert compute_fvd(frames, fake, StubDetector(), num_frames=6).value == pytest.approx(expected, rel=1e-9)


def test_only_the_first_frames_of_a_video_count(folders: tuple[Path, Path], tmp_path: Path) -> None:
    longer = drifting_clips(11, seed=0, frames=9)
    longer[:, 6:] = 0
    result = compute_fvd(folders[0], write_folder(tmp_path / "longer", longer), StubDetector(), num_frames=6)
    assert result.value < 1e-9


def test_a_resolution_brings_videos_of_all_sizes_to_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    mixed = write_folder(tmp_path / "mixed", drifting_clips(3, seed=2))
    write_video(mixed / "large.npy", drifting_clips(1, seed=3, size=32)[0])
    stub = StubDetector()
    compute_fvd(folders[0], mixed, stub, num_frames=6, resolution=8)
    assert {shape[1:] for shape in stub.batches} == {(6, 8, 8, 3)}
    with pytest.raises(ValueError, match=r"large\.npy is 32 x 32 and .*000\.npy is 16 x 16; give a resolution"):
        compute_fvd(folders[0], mixed, StubDetector(), num_frames=6)


def test_fewer_samples_are_the_same_ones_each_time_and_not_the_first_by_name(folders: tuple[Path, Path]) -> None:
    one, two = (compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=4) for _ in range(2))
    assert one == two
    assert one.num_samples == (4, 4)
    firsts = FeatureStats()
    firsts.update(StubDetector()(drifting_clips(11, seed=0)[:4]))
    seconds = FeatureStats()
    seconds.update(StubDetector()(drifting_clips(7, seed=1)[:4] // 2))
    by_name = frechet_distance(firsts.mean(), firsts.covariance(), seconds.mean(), seconds.covariance())
    assert abs(one.value - by_name) > 1e-3


def test_more_samples_than_a_folder_has_is_an_error_that_names_it(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"fake has 7 video\(s\) of 6 frames or more and 9 are needed; .*-ns"):
        compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=9)


def test_one_video_or_one_sample_is_too_few(folders: tuple[Path, Path], tmp_path: Path) -> None:
    single = write_folder(tmp_path / "single", drifting_clips(1, seed=4))
    with pytest.raises(ValueError, match=r"single has 1 video\(s\) .* 2 are needed"):
        compute_fvd(folders[0], single, StubDetector(), num_frames=6)
    with pytest.raises(ValueError, match="at least 2"):
        compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=1)


def test_short_videos_are_named_and_skipped(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = folders
    mixed = tmp_path / "mixed"
    shutil.copytree(fake, mixed)
    write_video(mixed / "short.npy", drifting_clips(1, seed=5, frames=3)[0])
    result = compute_fvd(real, mixed, StubDetector(), num_frames=6)
    assert [path.name for path, _ in result.skipped] == ["short.npy"]
    assert result.num_samples == (11, 7)
    assert result.value == compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert "short.npy: has 3 frames" in capsys.readouterr().err


def test_when_all_videos_are_too_short_the_longest_is_told(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="7 frames asked for, the longest has 6: ask for at most 6"):
        compute_fvd(*folders, StubDetector(), num_frames=7)


def test_features_that_are_not_numbers_name_the_video(folders: tuple[Path, Path]) -> None:
    class Broken(StubDetector):
        def __call__(self, clips_u8: np.ndarray | torch.Tensor) -> torch.Tensor:
            features = super().__call__(clips_u8)
            if len(self.batches) == 2:
                features[1, 3] = torch.nan
            return features

    with pytest.raises(ValueError, match=r"real/005\.npy: its features hold NaN"):
        compute_fvd(*folders, Broken(), num_frames=6, batch_size=4)


def test_a_video_damaged_further_in_is_named_counted_and_skipped(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames, good = tmp_path / "frames", tmp_path / "good"
    for i, clip in enumerate(drifting_clips(4, seed=6)):
        write_video(frames / f"{i:03d}", clip)
        if i != 1:
            write_video(good / f"{i:03d}", clip)
    damaged = frames / "001" / "00003.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    for workers in (0, 2):
        result = compute_fvd(folders[0], frames, StubDetector(), num_frames=6, workers=workers)
        assert [path for path, _ in result.skipped] == [frames / "001"]
        assert result.num_samples[1] == 3
        assert "00003.png" in capsys.readouterr().err
        expected = compute_fvd(folders[0], good, StubDetector(), num_frames=6)
        assert result.value == pytest.approx(expected.value, rel=1e-9)
    three = compute_fvd(folders[0], frames, StubDetector(), num_frames=6, num_samples=3)
    assert three.num_samples == (3, 3)
    with pytest.raises(ValueError, match=r"frames has 3 video\(s\) of 6 frames or more and 4 are needed"):
        compute_fvd(folders[0], frames, StubDetector(), num_frames=6, num_samples=4)


@pytest.mark.parametrize("knob", ["num_frames", "batch_size"])
def test_a_count_below_one_is_named(folders: tuple[Path, Path], knob: str) -> None:
    with pytest.raises(ValueError, match=f"{knob} is 0"):
        compute_fvd(*folders, StubDetector(), **{knob: 0})


def test_a_missing_folder_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        compute_fvd(folders[0], tmp_path / "absent", StubDetector(), num_frames=6)
