"""What each protocol feeds a detector, recorded by a stub: type, range, size, order of axes, switches, clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidm.detectors import features_of
from vidm.metrics import compute_fvd, compute_vis
from vidm.protocols import C3D, PROTOCOLS
from vidm.video_io import write_video


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


def test_stylegan_v_feeds_bytes_as_stored_and_leaves_all_to_the_detector(clips_u8: np.ndarray) -> None:
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
    # Frame by frame, crop after resize: in the middle of the frame a crop changes nothing.
    scale = 224 / min(height, width)
    size = (max(round(height * scale), 224), max(round(width * scale), 224))
    frame = torch.from_numpy(clips_u8[1, 2]).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = F.interpolate(frame, size, mode="bilinear")[0]
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    torch.testing.assert_close(video[1, :, 2], whole[:, top : top + 224, left : left + 224])


def test_a_white_and_a_black_video_come_to_the_ends_of_the_range() -> None:
    black_and_white = np.stack([np.zeros((3, 32, 32, 3), np.uint8), np.full((3, 32, 32, 3), 255, np.uint8)])
    for name, ends in (("stylegan-v", (0, 255)), ("vidm-released", (0, 1)), ("videogpt", (-1, 1))):
        video, _ = fed(name, black_and_white)
        for clip, end in zip(video.float(), ends, strict=True):
            torch.testing.assert_close(clip, torch.full_like(clip, end), rtol=0, atol=1e-6)


def test_covariances_and_starts_are_those_that_were_published() -> None:
    table = {name: (protocol.ddof, protocol.random_start, protocol.max_videos) for name, protocol in PROTOCOLS.items()}
    assert table == {
        "stylegan-v": (0, True, 2048),
        "vidm-released": (1, False, 2048),
        "videogpt": (1, False, 2048),
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Videos of ten frames whose brightness is the frame's number times ten, plus one in generated ones."""
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


def test_one_clip_of_each_video_real_ones_from_anywhere_generated_ones_from_the_start(
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
def test_the_other_protocols_take_the_first_frames_of_both(folders: tuple[Path, Path], name: str) -> None:
    with_start = Recorder()
    compute_fvd(*folders, with_start, num_frames=4, protocol=PROTOCOLS[name])
    clips = torch.cat([video for video, _ in with_start.calls])
    assert len(clips) == 14
    levels = clips[:, 0, :, 0, 0]
    assert torch.equal(levels[:9], levels[:1].expand(9, 4))


def test_the_classifier_is_fed_bytes_and_no_switches(folders: tuple[Path, Path]) -> None:
    recorder = Recorder()
    compute_vis(folders[1], recorder, num_frames=4, splits=2)
    ((video, switches),) = recorder.calls
    assert (video.dtype, tuple(video.shape), switches) == (torch.uint8, (5, 3, 4, 16, 16), {})
    assert C3D.name not in PROTOCOLS
