"""Tests of PSNR and SSIM of generated videos to the real ones that they continue, and of drift."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from vidm.frame_metrics import compute_frame_metrics, drift
from vidm.video_io import write_video

NUM_FRAMES = 6


def pictures(count: int, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 190, (count, NUM_FRAMES, size // 4, size // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


def write_folder(folder: Path, clips: np.ndarray, name: str = "{:03d}.npy") -> Path:
    for i, clip in enumerate(clips):
        write_video(folder / name.format(i), clip)
    return folder


def test_psnr_and_ssim_follow_an_error_that_grows_by_frame(tmp_path: Path) -> None:
    real = pictures(3)
    made = real.copy()
    for frame in range(NUM_FRAMES):
        made[:, frame] += np.uint8(2 * frame)
    one, two = write_folder(tmp_path / "real", real), write_folder(tmp_path / "made", made)
    result = compute_frame_metrics(one, two, NUM_FRAMES)
    expected = [100.0] + [20 * np.log10(255 / (2 * frame)) for frame in range(1, NUM_FRAMES)]
    assert result.psnr_by_frame == pytest.approx(expected, rel=1e-5)
    assert result.psnr == pytest.approx(np.mean(expected[1:]), rel=1e-5)
    assert result.ssim_by_frame[0] == pytest.approx(1, abs=1e-6)
    assert list(result.ssim_by_frame) == sorted(result.ssim_by_frame, reverse=True)
    assert (result.num_pairs, result.pairing) == (3, "by name")


def test_videos_are_paired_by_name_in_any_format_and_else_by_order(tmp_path: Path) -> None:
    real = pictures(4)
    one = write_folder(tmp_path / "real", real)
    named = tmp_path / "named"
    write_video(named / "002", real[2])
    ordered = write_folder(tmp_path / "ordered", real[:2], "video_{:05d}.npy")
    for folder, pairing, count in ((named, "by name", 1), (ordered, "by order", 2)):
        result = compute_frame_metrics(one, folder, NUM_FRAMES)
        assert (result.pairing, result.num_pairs, result.psnr) == (pairing, count, 100.0)


def test_pairs_by_name_whose_first_frames_differ_are_warned_of(tmp_path: Path) -> None:
    real = pictures(3)
    one, two = write_folder(tmp_path / "real", real), write_folder(tmp_path / "made", np.roll(real, 1, axis=0))
    assert compute_frame_metrics(one, one, NUM_FRAMES).warnings == ()
    (warning,) = compute_frame_metrics(one, two, NUM_FRAMES).warnings
    assert warning.startswith("videos are paired by name, but their first frames differ (PSNR ")


def test_generated_videos_without_a_real_one_are_an_error(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path / "a", pictures(2)), write_folder(tmp_path / "b", pictures(3), "x{}.npy")
    with pytest.raises(ValueError, match=r"3 videos of .*b cannot be paired with the 2 of .*a"):
        compute_frame_metrics(one, two, NUM_FRAMES)
    write_video(two / "short.npy", pictures(1)[0, :2])
    with pytest.raises(ValueError, match=r"\(1 skipped\)"):
        compute_frame_metrics(two, write_folder(tmp_path / "c", pictures(2)), NUM_FRAMES)


def test_strides_and_resolution_apply_as_in_compute_fvd(tmp_path: Path) -> None:
    real = pictures(2)
    one, two = write_folder(tmp_path / "real", real), write_folder(tmp_path / "made", real[:, ::2])
    assert compute_frame_metrics(one, two, 3, real_stride=2, resolution=12).psnr == 100.0
    assert compute_frame_metrics(one, two, 3).psnr < 30
    assert compute_frame_metrics(one, one, 3, frame_stride=2).psnr == 100.0


def test_videos_of_different_sizes_are_named_in_the_error(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path / "real", pictures(2)), write_folder(tmp_path / "made", pictures(2, size=32))
    with pytest.raises(
        ValueError,
        match=r"made/000\.npy is 32x32 and .*real/000\.npy is 24x24 \(height x width\); give a resolution",
    ):
        compute_frame_metrics(one, two, NUM_FRAMES)


def test_a_damaged_video_is_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_folder(tmp_path / "real", pictures(3))
    two = write_folder(tmp_path / "made", pictures(3), "{:03d}")
    image = two / "001" / "00004.png"
    image.write_bytes(image.read_bytes()[:30])
    result = compute_frame_metrics(one, two, NUM_FRAMES)
    assert result.num_pairs == 2
    assert "00004.png" in capsys.readouterr().err


def test_without_torchmetrics_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torchmetrics"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'vidm\[metrics\]'"):
        compute_frame_metrics(tmp_path, tmp_path)


def test_drift_grows_if_videos_diverge_and_is_zero_if_they_do_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(6):
        clip = np.repeat(rng.integers(0, 200, (1, 16, 16, 3), dtype=np.uint8), 9, axis=0)
        write_video(tmp_path / "real" / f"{i}.npy", clip)
        darker = clip * np.linspace(1, 0, 9).reshape(-1, 1, 1, 1)
        write_video(tmp_path / "made" / f"{i}.npy", darker.astype(np.uint8))
    curve = drift(tmp_path / "real", tmp_path / "made", 9, 3, 16)
    assert len(curve) == 3
    assert list(curve) == sorted(curve)
    assert curve[2] > 1.5 * curve[0]
    assert max(drift(tmp_path / "real", tmp_path / "real", 9, 3, 16)) < 1e-9
