"""Tests of datasets: samples are a function of (seed, epoch, index), and their order of (seed, step, position)."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vidm.checkpoint import checkpoint_path, load_checkpoint
from vidm.config import Config
from vidm.datasets import (
    Clips,
    FrameTriplets,
    ResumableSampler,
    SingleFrames,
    fit_frames,
    to_float,
    to_uint8,
    window_length,
)
from vidm.layouts import index_clips
from vidm.trainer import Trainer
from vidm.training_run import fit
from vidm.video_io import VideoError, read_video, write_video

NUM_FRAMES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 videos of 12 frames: red is 10 * frame number in the left half, green 10 * video number; the rest is blue."""
    folder = tmp_path_factory.mktemp("data")
    for video in range(5):
        frames = np.zeros((12, 16, 24, 3), np.uint8)
        frames[:, :, :12, 0] = 10 * np.arange(12)[:, None, None]
        frames[..., 1] = 10 * video
        frames[:, :, 12:, 2] = 255
        write_video(folder / f"{video}.npy", frames)
    return folder


@pytest.fixture(scope="module")
def triplets(data: Path) -> FrameTriplets:
    return FrameTriplets(index_clips(data), resolution=8, num_frames=NUM_FRAMES, seed=3)


def is_flipped(frame: torch.Tensor) -> bool:
    return bool(to_uint8(frame)[0, 0, 2] == 255)


def frame_number(frame: torch.Tensor) -> int:
    pixels = to_uint8(frame)
    return int(pixels[0, -1 if is_flipped(frame) else 0, 0]) // 10


def video_number(frame: torch.Tensor) -> int:
    return int(to_uint8(frame)[0, 0, 1]) // 10


def assert_same_samples(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# Pixels


def test_every_level_survives_the_conversion_to_float_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    frames = to_float(levels)
    assert frames.dtype == torch.float32
    assert frames.shape == (1, 3, 16, 16)
    assert (frames.min(), frames.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(frames), levels)


def test_to_uint8_rounds_and_clamps() -> None:
    levels = torch.tensor([-40.0, 0.4, 0.6, 99.4, 99.6, 300.0])
    frames = (levels / 127.5 - 1).reshape(1, 1, 6).repeat(3, 1, 1)
    truncated = ((frames + 1) * 127.5).clamp(0, 255).to(torch.uint8)  # truncation darkens by half a level on average
    assert truncated[0, 0].tolist() == [0, 0, 0, 99, 99, 255]
    assert to_uint8(frames)[0, :, 0].tolist() == [0, 0, 1, 99, 100, 255]


def test_fit_frames_keeps_the_centre_and_does_not_change_a_square_of_the_right_size() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, 10, 18, 3), np.uint8)
    np.testing.assert_array_equal(fit_frames(clip, 10), clip[:, :, 4:14])
    np.testing.assert_array_equal(fit_frames(clip.transpose(0, 2, 1, 3), 10), clip.transpose(0, 2, 1, 3)[:, 4:14])


def test_fit_frames_averages_a_fine_checkerboard_instead_of_sampling_it() -> None:
    y, x = np.mgrid[:64, :64]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[None, :, :, None], 3, axis=3)
    assert set(np.unique(board[:, ::8, ::8])) == {0}  # every eighth pixel is black
    assert np.abs(fit_frames(board, 8).astype(int) - 127.5).max() < 3


def test_fit_frames_agrees_with_pillow_to_one_level() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frame[0]).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(fit_frames(frame, 32)[0].astype(int) - expected).max() <= 1


# Triplets


def test_a_triplet_contains_frames_0_and_n_minus_1_and_n_of_one_window(triplets: FrameTriplets) -> None:
    seen = set()
    for epoch in range(60):
        for index in range(5):
            sample = triplets[epoch, index]
            n, start = int(sample["frame_index"]), frame_number(sample["first"])
            assert frame_number(sample["previous"]) == start + n - 1
            assert frame_number(sample["frame"]) == start + n
            assert {video_number(sample[name]) for name in ("first", "previous", "frame")} == {index}
            seen.add((start, n))
    # Every window that fits occurs, with each of its frames except the first.
    assert seen == {(start, n) for start in range(12 - NUM_FRAMES + 1) for n in range(1, NUM_FRAMES)}


@pytest.mark.parametrize(("num_frames", "stride", "starts"), [(6, 2, 2), (4, 3, 3), (2, 11, 1)])
def test_a_window_with_a_stride_has_every_kth_frame_and_fits(
    data: Path, num_frames: int, stride: int, starts: int
) -> None:
    length = window_length(num_frames, stride)
    assert 12 - length + 1 == starts
    dataset = FrameTriplets(index_clips(data, min_frames=length), 8, num_frames, seed=3, stride=stride)
    seen = set()
    for epoch in range(30):
        for video in range(5):
            sample = dataset[epoch, video]
            n, start = int(sample["frame_index"]), frame_number(sample["first"])
            assert frame_number(sample["previous"]) == start + (n - 1) * stride
            assert frame_number(sample["frame"]) == start + n * stride
            seen.add((start, n))
    assert seen == {(start, n) for start in range(starts) for n in range(1, num_frames)}


def test_the_default_stride_is_one(data: Path, triplets: FrameTriplets) -> None:
    again = FrameTriplets(index_clips(data), resolution=8, num_frames=NUM_FRAMES, seed=3, stride=1)
    for video in range(5):
        assert_same_samples(again[2, video], triplets[2, video])


def test_the_stride_is_saved_in_the_checkpoint_and_short_videos_are_refused(tiny: Config) -> None:
    config = tiny.replaced({"frame_stride": 3, "video_timesteps": 6, "total_iters": 1, "test_freq": 1})
    fit(Trainer(config, torch.device("cpu")))  # the world's videos have 16 frames, all of which this window spans
    checkpoint = load_checkpoint(checkpoint_path(config.train.out, 1))
    assert checkpoint.config.data.frame_stride == 3
    with pytest.raises(ValueError, match="has the 21 frames asked for, the longest has 16"):
        Trainer(config.replaced({"frame_stride": 4, "out": "elsewhere"}), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^frame_stride 0: give 1 or more"):
        Trainer(config.replaced({"frame_stride": 0, "out": "elsewhere"}), torch.device("cpu"))


def test_a_sample_is_float_in_minus_one_to_one_with_an_int64_index(triplets: FrameTriplets) -> None:
    sample = triplets[0, 0]
    for name in ("first", "previous", "frame"):
        assert sample[name].shape == (3, 8, 8)
        assert sample[name].dtype == torch.float32
        assert -1 <= sample[name].min() <= sample[name].max() <= 1
    assert sample["frame_index"].dtype == torch.int64
    assert sample["frame_index"].shape == ()


def test_a_flip_mirrors_all_three_frames_half_of_the_time(triplets: FrameTriplets, data: Path) -> None:
    plain = FrameTriplets(index_clips(data), resolution=8, num_frames=NUM_FRAMES, seed=3, flip=False)
    num_flipped = 0
    for epoch in range(200):
        ours, theirs = triplets[epoch, 1], plain[epoch, 1]
        assert not is_flipped(theirs["frame"])
        num_flipped += is_flipped(ours["frame"])
        for name in ("first", "previous", "frame"):
            expected = theirs[name].flip(-1) if is_flipped(ours["frame"]) else theirs[name]
            assert torch.equal(ours[name], expected)
    assert 70 < num_flipped < 130


def test_a_sample_depends_only_on_seed_epoch_and_index(triplets: FrameTriplets, data: Path) -> None:
    again = FrameTriplets(index_clips(data), resolution=8, num_frames=NUM_FRAMES, seed=3)
    for key in ((4, 2), (0, 0), (4, 1)):
        assert_same_samples(again[key], triplets[key])
    frames_of = {e: [int(triplets[e, i]["frame_index"]) for i in range(5)] for e in range(3)}
    assert len({tuple(frames) for frames in frames_of.values()}) == 3
    other = FrameTriplets(index_clips(data), resolution=8, num_frames=NUM_FRAMES, seed=4)
    assert any(not torch.equal(other[0, i]["frame"], triplets[0, i]["frame"]) for i in range(5))


@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_samples_do_not_depend_on_workers(triplets: FrameTriplets, context: str, num_workers: int) -> None:
    sampler = ResumableSampler(5, batch_size=4, seed=3, start_step=2, num_steps=3)
    with warnings.catch_warnings():
        # From Python 3.12 on, forking a process that has threads warns; PyTorch's threads are not affected.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        loader = DataLoader(triplets, batch_sampler=sampler, num_workers=num_workers, multiprocessing_context=context)
        many = list(loader)
    alone = list(DataLoader(triplets, batch_sampler=sampler))
    assert len(many) == len(alone) == 3
    for ours, theirs in zip(many, alone, strict=True):
        assert_same_samples(ours, theirs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shuffled_dataloader_draws_other_frames_in_every_epoch(triplets: FrameTriplets, num_workers: int) -> None:
    def epochs() -> list[list[tuple[int, int]]]:
        torch.manual_seed(0)
        found = []
        for _ in range(2):
            batches = list(DataLoader(triplets, batch_size=2, shuffle=True, num_workers=num_workers))
            assert [batch["frame"].shape for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
            frames = torch.cat([batch["frame"] for batch in batches])
            numbers = torch.cat([batch["frame_index"] for batch in batches]).tolist()
            found.append(list(zip(map(video_number, frames), numbers, strict=True)))
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        found = epochs()
        assert epochs() == found
    assert all(sorted(video for video, _ in epoch) == [0, 1, 2, 3, 4] for epoch in found)
    assert sorted(found[0]) != sorted(found[1])


def test_a_loop_over_a_data_set_visits_each_video_once_and_ends(triplets: FrameTriplets) -> None:
    assert [video_number(sample["frame"]) for sample in triplets] == [0, 1, 2, 3, 4]
    assert video_number(triplets[-1]["frame"]) == 4


def test_a_video_that_becomes_unreadable_is_replaced_by_the_next_and_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for video in range(3):
        write_video(tmp_path / f"{video}.npy", np.full((8, 8, 8, 3), 10 * video, np.uint8))
    index = index_clips(tmp_path)
    triplets = FrameTriplets(index, resolution=8, num_frames=4, seed=0)
    (tmp_path / "1.npy").write_bytes(b"")
    (tmp_path / "2.npy").unlink()
    for epoch in range(3):
        assert [video_number(triplets[epoch, i]["frame"]) for i in range(3)] == [0, 0, 0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "1.npy" in lines[0]
    assert "2.npy" in lines[1]


def test_training_stops_when_no_video_can_be_read_anymore(tmp_path: Path) -> None:
    write_video(tmp_path / "0.npy", np.zeros((8, 8, 8, 3), np.uint8))
    triplets = FrameTriplets(index_clips(tmp_path), resolution=8, num_frames=4, seed=0)
    (tmp_path / "0.npy").write_bytes(b"")
    with pytest.raises(VideoError, match=f"{tmp_path}: none of its 1 videos"):
        triplets[0, 0]


# Clips


def test_single_frames_are_the_first_or_a_random_frame_of_each_video(data: Path) -> None:
    index = index_clips(data)
    first, anywhere = (SingleFrames(index, resolution=8, seed=3, anywhere=a) for a in (False, True))
    for dataset, expected in ((first, {0}), (anywhere, set(range(12)))):
        samples = [dataset[epoch, video]["frame"] for epoch in range(40) for video in range(5)]
        assert {frame_number(frame) for frame in samples} == expected
        assert [video_number(frame) for frame in samples[:5]] == list(range(5))
        assert 0.3 < np.mean([is_flipped(frame) for frame in samples]) < 0.7


def test_clips_contain_the_requested_frames_and_the_path(data: Path) -> None:
    index = index_clips(data)
    clips = Clips(index, num_frames=7, starts=[3] * len(index.paths))
    assert len(clips) == 5
    for i, path in enumerate(index.paths):
        clip_u8, name = clips[i]
        np.testing.assert_array_equal(clip_u8, read_video(path)[3:10])
        assert name == str(path)
    strided, _ = Clips(index, num_frames=4, starts=[2] * len(index.paths), stride=3)[1]
    np.testing.assert_array_equal(strided, read_video(index.paths[1])[2:12:3])
    small, _ = Clips(index, num_frames=7, resolution=8)[0]
    np.testing.assert_array_equal(small, fit_frames(read_video(index.paths[0])[:7], 8))


def test_a_damaged_clip_raises_instead_of_being_left_out_silently(tmp_path: Path) -> None:
    write_video(tmp_path / "0.npy", np.zeros((8, 8, 8, 3), np.uint8))
    clips = Clips(index_clips(tmp_path), num_frames=4)
    (tmp_path / "0.npy").write_bytes(b"")
    with pytest.raises(VideoError, match=r"0\.npy"):
        clips[0]


# The order of training


def sampler(num_samples: int = 23, batch_size: int = 8, num_steps: int = 9, **options: int) -> ResumableSampler:
    options = {"seed": 5, "start_step": 0, **options}
    return ResumableSampler(num_samples, batch_size, num_steps=num_steps, **options)


def test_an_epoch_contains_no_sample_twice_and_drops_less_than_a_batch() -> None:
    keys = [key for batch in sampler(num_steps=6) for key in batch]
    assert [epoch for epoch, _ in keys] == [0] * 16 + [1] * 16 + [2] * 16
    assert len(set(keys)) == len(keys)
    even = [key for batch in sampler(num_samples=24, num_steps=6) for key in batch]
    assert sorted(even) == [(epoch, index) for epoch in range(2) for index in range(24)]


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    def order(**options: int) -> list[int]:
        return [index for batch in sampler(num_samples=24, num_steps=3, **options) for _, index in batch]

    assert order() == order()
    assert len({tuple(o) for o in (order(), order(start_step=3), order(seed=6))}) == 3


def test_a_batch_larger_than_the_data_repeats_samples_as_new_epochs() -> None:
    first, second = sampler(num_samples=3, batch_size=8, num_steps=2)
    for keys, epochs in ((first, [0, 1, 2]), (second, [3, 4, 5])):
        assert len(set(keys)) == 8
        assert [epoch for epoch, _ in keys] == sorted(epochs * 3)[:8]
        assert {index for _, index in keys} == {0, 1, 2}


@pytest.mark.parametrize(("world_size", "accum_steps"), [(2, 1), (1, 4), (2, 2), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_divide_the_batch_of_one_process(world_size: int, accum_steps: int) -> None:
    whole = list(sampler())
    ranks = [list(sampler(rank=r, world_size=world_size, accum_steps=accum_steps)) for r in range(world_size)]
    assert all(len(rank) == 9 * accum_steps for rank in ranks)
    for step in range(9):
        micro_batches = [
            key for m in range(accum_steps) for rank in ranks for key in rank[step * accum_steps + m]
        ]  # in the order of the global batch: micro-batch by micro-batch, rank by rank
        assert micro_batches == whole[step]


def test_a_sampler_resumed_at_step_k_equals_one_that_never_stopped() -> None:
    whole = list(sampler(num_steps=9, accum_steps=2))
    for k in (1, 4, 8):
        resumed = sampler(start_step=k, num_steps=9 - k, accum_steps=2)
        assert len(resumed) == 2 * (9 - k)
        assert list(resumed) == whole[2 * k :]


def test_a_global_batch_does_not_depend_on_earlier_steps() -> None:
    assert sampler(rank=1, world_size=2).global_batch(1000) == sampler().global_batch(1000)
    assert list(sampler(start_step=1000, num_steps=1)) == [sampler().global_batch(1000)]


def stream(
    triplets: FrameTriplets, start_step: int, num_workers: int, world_size: int
) -> list[dict[str, torch.Tensor]]:
    """Return the global batches of steps start_step .. 5, concatenated from the loaders of all ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores, or a fork in a process with threads
        loaders = [
            DataLoader(
                triplets,
                batch_sampler=ResumableSampler(
                    len(triplets), 4, 3, start_step, 6 - start_step, rank=rank, world_size=world_size
                ),
                num_workers=num_workers,
                multiprocessing_context="fork" if num_workers else None,
            )
            for rank in range(world_size)
        ]
        steps = list(zip(*loaders, strict=True))
    return [{name: torch.cat([batch[name] for batch in batches]) for name in batches[0]} for batches in steps]


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_resumed_at_step_k_equal_those_of_a_run_that_never_stopped(
    triplets: FrameTriplets, num_workers: int, world_size: int
) -> None:
    whole = stream(triplets, 0, num_workers=0, world_size=1)
    for k in (1, 4):  # 5 videos: with batches of 4 an epoch is one step, so both are in the middle of the run
        resumed = stream(triplets, k, num_workers, world_size)
        assert len(resumed) == 6 - k
        for ours, theirs in zip(resumed, whole[k:], strict=True):
            assert_same_samples(ours, theirs)
