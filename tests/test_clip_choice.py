"""Tests of the choice of clips: it depends on the seed and the videos' names, not on the order of files on disk."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidm.clip_choice import ClipSelection, choose_clips, draw_order, kinds_of, taken
from vidm.datasets import Clips
from vidm.layouts import index_clips
from vidm.packs import write_pack
from vidm.video_io import write_video

NUM_VIDEOS, NUM_FRAMES = 12, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS):
        write_video(root / f"class{i % 3}" / f"{i}.npy", np.full((NUM_FRAMES, 8, 8, 3), i, np.uint8))
    return root


def chosen(clips: Clips) -> dict[str, int]:
    return {path.name: start for path, start in zip(clips.index.paths, clips.starts, strict=True)}


def test_all_videos_are_used_unless_fewer_are_requested(folder: Path) -> None:
    assert len(choose_clips(ClipSelection(folder, 4))) == NUM_VIDEOS
    assert len(choose_clips(ClipSelection(folder, 4, num_samples=5))) == 5
    assert len(choose_clips(ClipSelection(folder, 4, max_samples=7))) == 7


def test_clips_do_not_depend_on_the_order_of_files_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = chosen(choose_clips(ClipSelection(folder, 4, num_samples=5, random_start=True)))
    walk = os.walk

    def backwards(*args: object, **kwargs: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for root, folders, names in walk(*args, **kwargs):  # type: ignore[arg-type]
            folders.reverse()
            yield root, folders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert chosen(choose_clips(ClipSelection(folder, 4, num_samples=5, random_start=True))) == expected


def test_another_seed_draws_other_videos_and_other_starts(folder: Path) -> None:
    selections = [ClipSelection(folder, 4, num_samples=5, seed=seed, random_start=True) for seed in range(6)]
    draws = [chosen(choose_clips(selection)) for selection in selections]
    assert len({tuple(draw) for draw in draws}) > 2
    starts = {start for draw in draws for start in draw.values()}
    assert starts == set(range(NUM_FRAMES - 4 + 1))


def test_a_video_keeps_its_start_when_others_are_added_or_removed(folder: Path) -> None:
    few, all_of_them = (chosen(choose_clips(ClipSelection(folder, 4, n, random_start=True))) for n in (5, None))
    assert few.items() <= all_of_them.items()


def test_without_a_random_start_clips_begin_at_the_first_frame(folder: Path) -> None:
    assert set(chosen(choose_clips(ClipSelection(folder, 4))).values()) == {0}


def test_a_window_is_a_part_of_the_same_clips(folder: Path) -> None:
    selection = ClipSelection(folder, 4, num_samples=5, frame_stride=2, random_start=True)
    whole, part = choose_clips(selection), choose_clips(replace(selection, window=range(1, 3)))
    assert part.index.paths == whole.index.paths
    assert part.starts == [start + 2 for start in whole.starts]
    assert part[0][0].shape[0] == 2


def test_generated_clips_have_no_real_stride_and_no_split_and_begin_at_the_first_frame() -> None:
    real = ClipSelection("real", 4, 5, 16, frame_stride=2, real_stride=3, split="val", seed=7, random_start=True)
    made = real.generated("made")
    assert (real.stride, real.length, made.stride, made.length) == (6, 19, 2, 7)
    assert made == ClipSelection("made", 4, 5, 16, frame_stride=2, seed=7)


@pytest.mark.parametrize("value", [0, 10**20])
@pytest.mark.parametrize("name", ["num_frames", "resolution", "frame_stride", "real_stride"])
def test_a_selection_with_a_count_below_one_or_too_large_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be from 1 to "):
        ClipSelection(**{"folder": "real", "num_frames": 4, name: value})


def test_a_resolution_larger_than_the_budget_of_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution is 8193; it must be from 1 to 8192"):
        ClipSelection("real", 4, resolution=8193)


def test_a_stride_needs_longer_videos(folder: Path) -> None:
    clips = choose_clips(ClipSelection(folder, 3, frame_stride=4, random_start=True))
    assert set(clips.starts) == {0}
    with pytest.raises(ValueError, match=r"no video in .* has the 13 frames"):
        choose_clips(ClipSelection(folder, 4, frame_stride=4))


def test_damaged_videos_are_replaced_by_others_and_the_rest_are_kept(folder: Path) -> None:
    selection = ClipSelection(folder, 4, num_samples=5, random_start=True)
    before = choose_clips(selection)
    bad = before.index.paths[2]
    after = choose_clips(selection, [(bad, "truncated")])
    assert len(after) == 5
    assert len(chosen(before).items() & chosen(after).items()) == 4
    assert after.index.skipped == [(bad, "truncated")]


def test_others_are_added_and_come_last_in_the_order_of_the_draw(folder: Path) -> None:
    five, seven, more = (choose_clips(ClipSelection(folder, 4, 5, random_start=True, others=n)) for n in (0, 2, 100))
    first = taken(seven, sorted(draw_order(seven, seed=0)[:5]))
    assert (first.index.paths, first.starts) == (five.index.paths, five.starts)
    assert len(seven) == 7
    assert len(more) == len(choose_clips(ClipSelection(folder, 4)))
    assert draw_order(seven, seed=0) != draw_order(seven, seed=1)


@pytest.mark.parametrize("names", [["."], [".", "a"], ["a", "a/b.npy"]])
def test_clips_of_a_pack_have_a_kind_whatever_their_names(tmp_path: Path, names: list[str]) -> None:
    with write_pack(tmp_path / "pack") as writer:
        for name in names:
            writer.add_raw(name, np.zeros((2, 8, 8, 3), np.uint8))
    kinds = kinds_of(index_clips(tmp_path / "pack"))
    assert sum(kinds.values()) == len(names)
    assert set(kinds) <= {"frames", "npy"}
