"""Tests of the random detector, TorchScript detectors and protocols: inputs, outputs and errors."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidm import detectors
from vidm.checkpoint_formats import load_any
from vidm.detectors import (
    C3D,
    I3D_NAME,
    PRETRAINED,
    PROTOCOLS,
    STYLEGAN_V,
    VIDM_RELEASED,
    Detector,
    features_of,
    label_of,
    load_classifier,
    load_detector,
    name_of,
)
from vidm.files import sha256_of
from vidm.frechet import FeatureStats, frechet_of
from vidm.metrics import compute_fvd, compute_vis
from vidm.video_io import write_video


def moving_squares(n: int, seed: int, frames: int = 8, size: int = 32) -> np.ndarray:
    """Return clips (n, frames, size, size, 3) of a coloured square that moves over grey and bounces."""
    rng = np.random.default_rng(seed)
    clips = np.full((n, frames, size, size, 3), 100, np.uint8)
    side = size // 4
    for clip in clips:
        start, velocity = rng.uniform(0, size, 2), rng.normal(0, size / 16, 2)
        colour = rng.integers(0, 256, 3)
        for t, frame in enumerate(clip):
            bounced = np.abs((start + velocity * t) % (2 * size) - size) * (size - side) / size
            y, x = bounced.astype(int)
            frame[y : y + side, x : x + side] = colour
    return clips


def ask(detector: Detector, clips: np.ndarray | torch.Tensor) -> torch.Tensor:
    return features_of(detector, clips, STYLEGAN_V, "cpu")


def distance(one: np.ndarray, two: np.ndarray) -> float:
    detector = load_detector("random")
    sides = FeatureStats(), FeatureStats()
    for stats, clips in zip(sides, (one, two), strict=True):
        stats.update(ask(detector, clips))
    return frechet_of(*sides)


def save_torchscript(network: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(network), path)
    return path


class StandIn(torch.nn.Module):
    """A network with the signature of the published I3D; its features show how it was called."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features), float(self.training)])
        return torch.cat([x[:, :, 0, 0, 0], x[:, :, -1, -1, -1], flags.expand(x.shape[0], 4)], dim=1)


class NoFeatures(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return x


class OtherSignature(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3, 4])


def test_other_real_clips_are_near_and_static_clips_are_far() -> None:
    real, other = moving_squares(64, seed=1), moving_squares(64, seed=2)
    still = np.repeat(other[:, :1], other.shape[1], axis=1)
    assert 0.1 < distance(real, other) < 0.25 * distance(real, still)


@pytest.mark.parametrize("corruption", ["shuffled frames", "noise", "darker"])
def test_corrupted_clips_are_farther_from_real_ones_than_other_real_ones(corruption: str) -> None:
    real, other = moving_squares(64, seed=1), moving_squares(64, seed=2)
    rng = np.random.default_rng(0)
    corrupted = {
        "shuffled frames": other[:, rng.permutation(other.shape[1])],
        "noise": (other * 0.8 + rng.integers(0, 52, other.shape)).astype(np.uint8),
        "darker": other // 2,
    }[corruption]
    assert distance(real, corrupted) > 3 * distance(real, other)


def test_random_features_of_a_clip_do_not_depend_on_its_batch() -> None:
    clips = moving_squares(7, seed=3)
    detector = load_detector("random")
    alone = torch.cat([ask(detector, clips[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(ask(detector, clips), alone, rtol=0, atol=1e-5)
    assert alone.std(dim=0).max() > 0.1


def test_random_features_are_the_same_in_every_run_and_do_not_use_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = ask(load_detector("random"), moving_squares(2, seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(ask(load_detector("random"), moving_squares(2, seed=4)), first)


def test_arrays_and_tensors_give_the_same_features() -> None:
    clips = moving_squares(2, seed=4)
    detector = load_detector("random")
    assert torch.equal(ask(detector, clips), ask(detector, torch.from_numpy(clips)))


@pytest.mark.parametrize(("frames", "size"), [(2, 16), (3, 17), (9, 70)])
def test_two_frames_of_16_pixels_are_enough_for_the_random_detector(frames: int, size: int) -> None:
    features = ask(load_detector("random"), moving_squares(2, seed=0, frames=frames, size=size))
    assert features.shape == (2, 128)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 1, 32, 32, 3), r"1 frame\(s\) of 32x32"), ((1, 4, 8, 32, 3), "8x32 pixels")]
)
def test_too_few_frames_or_pixels_are_named_in_the_error(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(load_detector("random"), np.zeros(shape, np.uint8))


def test_clips_that_are_not_uint8_with_channels_last_are_refused() -> None:
    for clips in (np.zeros((1, 4, 32, 32, 3), np.float32), np.zeros((1, 3, 4, 32, 32), np.uint8)):
        with pytest.raises(ValueError, match=r"not uint8 \(B, T, H, W, 3\)"):
            ask(load_detector("random"), clips)


def test_results_of_the_random_network_are_not_called_fvd_or_inception_score() -> None:
    assert "not an FVD" in name_of(load_detector("random"))
    assert "FVD" not in label_of(load_detector("random"))
    assert "FVD" not in label_of(lambda video: video)
    assert "not a video inception score" in name_of(load_classifier("random"))


def test_the_input_of_the_i3d_is_uint8_with_channels_first_and_its_three_switches_are_on(tmp_path: Path) -> None:
    detector = load_detector(save_torchscript(StandIn(), tmp_path / "i3d_torchscript.pt"))
    clips = np.zeros((2, 3, 4, 5, 3), np.uint8)
    clips[0, 0, 0, 0] = (255, 1, 2)
    clips[1, -1, -1, -1] = (3, 4, 255)
    expected = [[255, 1, 2, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 3, 4, 255, 1, 1, 1, 0]]
    assert ask(detector, clips).tolist() == expected
    assert name_of(detector) == "FVD (I3D i3d_torchscript.pt)"
    assert label_of(detector) == "FVD"
    assert detector.sha256 == sha256_of([tmp_path / "i3d_torchscript.pt"])


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the checkout's pretrained_models; the working folder is another one."""
    folder, working = tmp_path / "checkout" / "pretrained_models", tmp_path / "working"
    folder.mkdir(parents=True)
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(detectors, "PRETRAINED", folder)
    return folder


class Writer(StandIn):
    """A program that writes a file."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        written = torch.from_file("written", True, 4, dtype=torch.uint8).fill_(65)
        return x.double().mean(dim=[2, 3, 4]) + written.sum()  # without a use, the file would not be written


def test_a_detector_in_the_working_folder_is_not_run_unless_it_is_named(pretrained: Path) -> None:
    Path("pretrained_models").mkdir()
    for name in ("i3d_torchscript.pt", "c3d_ucf101.pt"):
        save_torchscript(Writer(), Path("pretrained_models", name))
        save_torchscript(Writer(), Path(name))
    for detector in (load_detector(), load_classifier()):
        ask(detector, moving_squares(2, seed=0))
        assert "not comparable with published numbers" in name_of(detector)
    assert not Path("written").exists()
    ask(load_detector("i3d_torchscript.pt"), moving_squares(2, seed=0))
    assert Path("written").read_bytes() == b"AAAA"


@pytest.mark.parametrize(
    ("load", "name", "flag", "known"),
    [
        (load_detector, "i3d_torchscript.pt", "-i3d", "FVD (I3D i3d_torchscript.pt)"),
        (load_classifier, "c3d_ucf101.pt", "-c3d", "video inception score (C3D c3d_ucf101.pt)"),
    ],
)
def test_the_default_detector_is_the_one_that_the_script_downloaded(
    pretrained: Path, capsys: pytest.CaptureFixture[str], load: Any, name: str, flag: str, known: str
) -> None:
    assert "not comparable with published numbers" in name_of(load())
    assert capsys.readouterr().err == ""
    path, record = save_torchscript(StandIn(), pretrained / name), pretrained / "downloads.sha256"
    lines = [f"{sha256_of([path])}  other.pt", f"{'0' * 64}  {name}", f" {sha256_of([path])}  {name}"]
    for content in ("", "\n".join(lines), "\x00\xff"):
        record.write_text(content)
        assert "not comparable with published numbers" in name_of(load())
    assert capsys.readouterr().err == (  # once
        f"{path} is not used, because scripts/download_models.sh did not download it: "
        f"if you trust it, give {flag} {path}\n"
    )
    record.write_text(f"{sha256_of([path])}  {name}\n")
    assert name_of(load()) == known
    assert "not comparable with published numbers" in name_of(load("random"))
    path.write_bytes(save_torchscript(Writer(), pretrained / "other.pt").read_bytes())
    assert "not comparable with published numbers" in name_of(load())


def test_a_named_detector_is_said_to_be_a_program_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_torchscript(StandIn(), tmp_path / "mine.pt")
    for _ in range(2):
        load_detector(str(path))
    load_classifier(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} (sha256 {sha256_of([path])}) is a program, ")


def test_a_missing_i3d_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.pt: check the path") as caught:
        load_detector(tmp_path / "absent.pt")
    assert "\n" not in str(caught.value)


def test_a_torchscript_file_with_a_changed_weight_is_named_in_the_error(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(3, 8, 3)
    path = save_torchscript(network, tmp_path / "i3d_torchscript.pt")
    weights = network.weight.detach().numpy().tobytes()
    content = path.read_bytes()
    path.write_bytes(content.replace(weights, weights[:-1] + bytes([weights[-1] ^ 1])))
    message = f"{path} is damaged or not a TorchScript file; download it again from https:"
    for damaged in (path.read_bytes(), content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load_detector(path)


def test_a_file_that_is_not_torchscript_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a network")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    for name in ("text.pt", "weights.pt"):
        with pytest.raises(ValueError, match=f"{name} is damaged or not a TorchScript file"):
            load_detector(tmp_path / name)


PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("load", [load_detector, load_classifier, load_any])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAGE, "is a web page, .* in a browser"),
        (POINTER, "is a Git LFS pointer, .* git lfs pull"),
        (b'{\n  "model": {}\n}\n', "is JSON, such as the settings of a run"),
    ],
)
def test_what_a_failed_download_left_behind_is_named_and_so_are_settings(
    tmp_path: Path, load: Any, content: bytes, message: str
) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.pt {message}"):
        load(tmp_path / "file.pt")


def test_weights_as_a_git_lfs_pointer_are_named(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "file.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"file\.safetensors is a Git LFS pointer"):
        load_any(tmp_path / "file.safetensors")


class TooLarge(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return torch.empty(1 << 60)


def test_a_detector_that_runs_out_of_memory_is_not_said_to_need_more_frames(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(2):
            write_video(tmp_path / name / f"{number}.npy", np.zeros((4, 16, 16, 3), np.uint8))
    detector = load_detector(save_torchscript(TooLarge(), tmp_path / "large.pt"))
    message = "out of memory on the CPU: batches of 2 clips in the detector do not fit; give a smaller batch_size"
    with pytest.raises(ValueError, match=message):
        compute_fvd(tmp_path / "a", tmp_path / "b", detector, num_frames=4)


@pytest.mark.parametrize(
    ("network", "message"),
    [(NoFeatures(), r"returned \(2, 3, 4, 16, 16\)"), (OtherSignature(), r"failed .* 4 frames")],
)
def test_a_network_that_is_not_the_i3d_is_named_in_one_line(
    network: torch.nn.Module, message: str, tmp_path: Path
) -> None:
    detector = load_detector(save_torchscript(network, tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=rf"other\.pt.*{message}") as caught:
        ask(detector, np.zeros((2, 4, 16, 16, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_any_python_module_is_a_detector_named_after_its_class() -> None:
    class Brightness(torch.nn.Module):
        def forward(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
            return video.float().mean(dim=(2, 3, 4))

    clips = moving_squares(3, seed=5)
    expected = torch.from_numpy(clips).double().mean(dim=(1, 2, 3)).float()
    torch.testing.assert_close(ask(Brightness(), clips), expected)
    assert name_of(Brightness()) == "Brightness"


def test_random_features_do_not_depend_on_whether_the_network_or_the_caller_rescales() -> None:
    clips = moving_squares(2, seed=6)
    video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
    detector = load_detector("random")
    torch.testing.assert_close(detector(video.float() / 127.5 - 1), ask(detector, clips), rtol=0, atol=1e-5)
    unit = features_of(detector, clips, PROTOCOLS["vidm-released"], "cpu")
    torch.testing.assert_close(detector(video.float() / 255), unit)


@pytest.mark.skipif(not (PRETRAINED / I3D_NAME).is_file(), reason="needs scripts/download_models.sh i3d")
def test_with_the_real_i3d_black_and_white_are_at_the_known_distance() -> None:
    """8 clips of 30 frames of 64 x 64, as floats 0 or 1, which the network resizes and does not rescale."""
    detector = load_detector(PRETRAINED / I3D_NAME)
    black, white = FeatureStats(), FeatureStats()
    for stats, level in ((black, 0), (white, 255)):
        stats.update(features_of(detector, np.full((8, 30, 64, 64, 3), level, np.uint8), VIDM_RELEASED, "cpu"))
    assert frechet_of(black, white, ddof=1) == pytest.approx(151.3, abs=0.5)


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
        self.calls.append((video.clone(), switches))
        return video.double().mean(dim=(2, 3, 4))


def fed(name: str, clips_u8: np.ndarray) -> tuple[torch.Tensor, dict[str, Any]]:
    recorder = Recorder()
    features_of(recorder, clips_u8, PROTOCOLS[name], "cpu")
    (call,) = recorder.calls
    return call


@pytest.fixture
def clips_u8() -> np.ndarray:
    clips = np.random.default_rng(0).integers(0, 256, (2, 5, 30, 40, 3), dtype=np.uint8)
    clips[0, 0, 0, 0], clips[1, -1, -1, -1] = 0, 255
    return clips


def test_stylegan_v_feeds_uint8_as_stored_and_lets_the_detector_rescale_and_resize(clips_u8: np.ndarray) -> None:
    video, switches = fed("stylegan-v", clips_u8)
    assert video.dtype == torch.uint8
    np.testing.assert_array_equal(video.numpy(), clips_u8.transpose(0, 4, 1, 2, 3))
    assert switches == {"rescale": True, "resize": True, "return_features": True}


def test_vidm_released_feeds_floats_up_to_one_and_does_not_rescale(clips_u8: np.ndarray) -> None:
    video, switches = fed("vidm-released", clips_u8)
    assert (video.dtype, video.min().item(), video.max().item()) == (torch.float32, 0.0, 1.0)
    np.testing.assert_allclose(video.numpy(), clips_u8.transpose(0, 4, 1, 2, 3) / 255, atol=1e-6)
    assert switches == {"rescale": False, "resize": True, "return_features": True}


@pytest.mark.parametrize(("height", "width"), [(30, 40), (40, 30), (32, 32), (224, 300), (301, 240)])
def test_videogpt_feeds_the_central_224_square_from_minus_one_to_one(height: int, width: int) -> None:
    clips_u8 = np.random.default_rng(1).integers(0, 256, (2, 3, height, width, 3), dtype=np.uint8)
    video, switches = fed("videogpt", clips_u8)
    assert video.shape == (2, 3, 3, 224, 224)
    assert switches == {"rescale": False, "resize": False, "return_features": True}
    assert video.min() >= -1
    assert video.max() <= 1
    # The expected frame is resized first and cropped afterwards.
    scale = 224 / min(height, width)
    size = (max(round(height * scale), 224), max(round(width * scale), 224))
    frame = torch.from_numpy(clips_u8[1, 2]).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = F.interpolate(frame, size, mode="bilinear")[0]
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    torch.testing.assert_close(video[1, :, 2], whole[:, top : top + 224, left : left + 224])


def test_black_and_white_videos_are_mapped_to_the_ends_of_the_range() -> None:
    black_and_white = np.stack([np.zeros((3, 32, 32, 3), np.uint8), np.full((3, 32, 32, 3), 255, np.uint8)])
    for name, ends in (("stylegan-v", (0, 255)), ("vidm-released", (0, 1)), ("videogpt", (-1, 1))):
        video, _ = fed(name, black_and_white)
        for clip, end in zip(video.float(), ends, strict=True):
            torch.testing.assert_close(clip, torch.full_like(clip, end), rtol=0, atol=1e-6)


def test_the_protocols_have_the_published_covariances_and_starts() -> None:
    table = {name: (protocol.ddof, protocol.random_start, protocol.max_videos) for name, protocol in PROTOCOLS.items()}
    assert table == {
        "stylegan-v": (0, True, 2048),
        "vidm-released": (1, False, 2048),
        "videogpt": (1, False, 2048),
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write videos of ten frames; a pixel is ten times the frame's number, plus one in generated videos."""
    for folder, count in (("real", 9), ("made", 5)):
        for i in range(count):
            frames = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1) * 10 + (folder == "made")
            write_video(tmp_path / folder / f"{i}.npy", np.broadcast_to(frames, (10, 16, 16, 3)).copy())
    return tmp_path / "real", tmp_path / "made"


def frames_seen(recorder: Recorder) -> tuple[list[list[int]], list[list[int]]]:
    seen = [[int(level) for level in clip[0, :, 0, 0]] for video, _ in recorder.calls for clip in video]
    real = [[level // 10 for level in levels] for levels in seen if levels[0] % 10 == 0]
    made = [[level // 10 for level in levels] for levels in seen if levels[0] % 10 == 1]
    return real, made


def test_real_clips_begin_at_a_random_frame_and_generated_ones_at_frame_0(
    folders: tuple[Path, Path],
) -> None:
    recorder = Recorder()
    compute_fvd(*folders, recorder, num_frames=4, batch_size=4)
    real, made = frames_seen(recorder)
    assert (len(real), made) == (9, [[0, 1, 2, 3]] * 5)
    assert all(levels == list(range(levels[0], levels[0] + 4)) for levels in real)
    starts = [levels[0] for levels in real]
    assert len(set(starts)) > 2
    assert set(starts) <= set(range(7))
    again = Recorder()
    compute_fvd(*folders, again, num_frames=4, batch_size=3)
    assert frames_seen(again) == (real, made)
    other = Recorder()
    compute_fvd(*folders, other, num_frames=4, seed=5)
    assert frames_seen(other)[0] != real


@pytest.mark.parametrize("name", ["vidm-released", "videogpt"])
def test_clips_of_the_other_protocols_begin_at_the_first_frame_in_both_folders(
    folders: tuple[Path, Path], name: str
) -> None:
    with_start = Recorder()
    compute_fvd(*folders, with_start, num_frames=4, protocol=PROTOCOLS[name])
    clips = torch.cat([video for video, _ in with_start.calls])
    assert len(clips) == 14
    levels = clips[:, 0, :, 0, 0]
    made, real = levels[:5], levels[5:]
    assert torch.equal(made, levels[:1].expand(5, 4))
    assert torch.equal(real, levels[5:6].expand(9, 4))


def test_the_classifier_is_called_with_uint8_and_no_switches(folders: tuple[Path, Path]) -> None:
    recorder = Recorder()
    compute_vis(folders[1], recorder, num_frames=4, splits=2)
    ((video, switches),) = recorder.calls
    assert (video.dtype, tuple(video.shape), switches) == (torch.uint8, (5, 3, 4, 16, 16), {})
    assert C3D.name not in PROTOCOLS
