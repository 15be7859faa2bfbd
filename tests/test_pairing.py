"""Tests of pairing: each generated video is compared with the real one that it continues, whatever is missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import fill_by_rule
from PIL import Image

from vidm.checkpoint import Checkpoint, build_model, save_checkpoint
from vidm.config import Config
from vidm.first_frames import list_content
from vidm.frame_metrics import compute_frame_metrics
from vidm.generator import Generator, load_generator
from vidm.layouts import index_clips
from vidm.packs import read_frames, write_pack
from vidm.pairing import pair_videos
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder
from vidm.video_io import write_video

SIDE, NUM_REAL = 16, 5


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    config = Config.from_preset("tiny").replaced({"image_size": SIDE})
    state = fill_by_rule(build_model(config)).state_dict()
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_00000001.pt"
    save_checkpoint(path, Checkpoint(1, config, state, state, {}))
    return load_generator(path, device="cpu")


def frames_of(number: int, num_frames: int = 3) -> np.ndarray:
    return np.full((num_frames, SIDE, SIDE, 3), 20 * number, np.uint8) + np.arange(SIDE, dtype=np.uint8)[:, None]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Five videos in two folders; the brightness tells them apart."""
    for number in range(NUM_REAL):
        write_video(tmp_path / "real" / ("train" if number < 2 else "test") / f"clip_{number}.npy", frames_of(number))
    return tmp_path / "real"


def sample(generator: Generator, content: Path, out: Path, **values: object) -> Path:
    settings = SampleConfig(content=str(content), out=str(out), num_frames=3, steps="1", format="npy")
    sample_folder(generator, replace(settings, **values))
    return out


def brightness(path: Path) -> int:
    return round(float(read_frames(path, [0]).mean() - 7.5) / 20)


def numbers(real: Path, made: Path) -> list[tuple[int, int]]:
    """Return the numbers of paired videos, generated and real, by the brightness of their first frames."""
    pairs = pair_videos(index_clips(real), index_clips(made))
    return [(brightness(a), brightness(b)) for a, b in zip(pairs.made.paths, pairs.real.paths, strict=True)]


def test_a_sample_records_the_file_and_the_digest_of_its_first_frame(
    generator: Generator, real: Path, tmp_path: Path
) -> None:
    made = sample(generator, real, tmp_path / "made")
    records = [json.loads((made / f"video_{i:05d}.json").read_text()) for i in range(NUM_REAL)]
    assert {record["first_frame_number"] for record in records} == {0}
    assert len({record["first_frame_sha256"] for record in records}) == NUM_REAL
    assert records[0]["first_frame"] == str(real / "test" / "clip_2.npy")


def test_a_missing_sample_shifts_no_other_one(generator: Generator, real: Path, tmp_path: Path) -> None:
    made = sample(generator, real, tmp_path / "made")
    for suffix in ("npy", "json"):
        (made / f"video_00001.{suffix}").unlink()
    assert numbers(real, made) == [(n, n) for n in (2, 4, 0, 1)]
    result = compute_frame_metrics(real, made, 1)
    assert (result.num_pairs, result.pairing, result.psnr) == (4, "by first frame", 100.0)
    assert result.pairs[1] == (made / "video_00002.npy", real / "test" / "clip_4.npy")


def test_a_first_frame_damaged_only_while_sampling_shifts_no_other_one(
    generator: Generator, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (real / "test" / "clip_3.npy").read_bytes()

    def damaged_after_listing(*content: str) -> list[Path]:
        paths = list_content(*content)
        (real / "test" / "clip_3.npy").write_bytes(whole[:50])
        return paths

    monkeypatch.setattr("vidm.sampling.list_content", damaged_after_listing)
    made = sample(generator, real, tmp_path / "made")
    (real / "test" / "clip_3.npy").write_bytes(whole)
    assert numbers(real, made) == [(n, n) for n in (2, 4, 0, 1)]


@pytest.mark.parametrize("how", ["path", "digest", "pack", "relative path"])
def test_samples_of_a_part_are_compared_with_the_right_videos(
    generator: Generator, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made = sample(generator, Path("real/test") if how == "relative path" else real / "test", tmp_path / "made")
    if how == "digest":
        real = Path(shutil.move(real, tmp_path / "elsewhere"))
    if how == "pack":
        with write_pack(tmp_path / "pack") as pack:
            for path in reversed(index_clips(real).paths):
                pack.add_encoded(path.name, path)
        shutil.rmtree(real)
        real = tmp_path / "pack"
    assert numbers(real, made) == [(n, n) for n in (2, 3, 4)]


def test_first_frames_as_images_lead_to_the_videos_they_are_from(
    generator: Generator, real: Path, tmp_path: Path
) -> None:
    for name, number in (("a", 4), ("b", 1)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(frames_of(number)[0]).save(tmp_path / "images" / f"{name}.png")
    made = sample(generator, tmp_path / "images", tmp_path / "made", num_samples=3)
    assert numbers(real, made) == [(n, n) for n in (4, 1, 4)]


def test_samples_whose_real_video_is_elsewhere_are_left_out_and_named(
    generator: Generator, real: Path, tmp_path: Path
) -> None:
    made = sample(generator, real, tmp_path / "made")
    result = compute_frame_metrics(real / "train", made, 1)
    assert (result.num_pairs, result.psnr) == (2, 100.0)
    assert len(result.skipped) == 3
    assert f"no video of {real / 'train'} begins" in result.skipped[0][1]
    split = compute_frame_metrics(real, made, 1, split="train")
    assert f"no video of split train of {real} begins" in split.skipped[0][1]
    assert str(real / "test" / "clip_2.npy") in result.skipped[0][1]
    write_video(tmp_path / "other" / "video_00000.npy", frames_of(9))
    with pytest.raises(ValueError, match=r"none of the 5 videos of .*made can be paired .* no video of .*other begins"):
        compute_frame_metrics(tmp_path / "other", made, 1)


def test_equal_first_frames_are_told_apart_by_the_file_name_or_left_out(
    generator: Generator, real: Path, tmp_path: Path
) -> None:
    made = sample(generator, real / "train", tmp_path / "made")
    for name in ("clip_0.npy", "twin.npy", "one.npy", "two.npy"):
        write_video(tmp_path / "moved" / name, frames_of(0 if name in ("clip_0.npy", "twin.npy") else 1))
    pairs = pair_videos(index_clips(tmp_path / "moved"), index_clips(made))
    assert [path.name for path in pairs.real.paths] == ["clip_0.npy"]
    assert "2 videos of" in pairs.unpaired[0][1]


def test_videos_that_were_generated_from_scratch_continue_no_real_one(real: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "made" / "video_00000.npy", frames_of(1))
    (tmp_path / "made" / "video_00000.json").write_text(json.dumps({"first_frame": "drawn"}))
    with pytest.raises(ValueError, match="continues no real video"):
        compute_frame_metrics(real, tmp_path / "made", 1)


def test_no_suffix_is_cut_from_the_names_of_folders(tmp_path: Path) -> None:
    for number in range(3):
        for side in ("real", "made"):
            write_video(tmp_path / "frames", frames_of(number))
            (tmp_path / side).mkdir(exist_ok=True)
            (tmp_path / "frames").rename(tmp_path / side / f"clip_0.{number}")
    result = compute_frame_metrics(tmp_path / "real", tmp_path / "made", 3)
    assert (result.num_pairs, result.pairing, result.psnr) == (3, "by name", 100.0)


def test_names_are_those_in_the_split(real: Path, tmp_path: Path) -> None:
    shutil.copytree(real / "test", tmp_path / "made")
    (tmp_path / "made" / "clip_2.npy").unlink()
    result = compute_frame_metrics(real, tmp_path / "made", 1, split="test")
    assert (result.num_pairs, result.pairing, result.psnr) == (2, "by name", 100.0)


def test_a_name_with_its_suffix_comes_before_one_without(tmp_path: Path) -> None:
    for name, number in (("a.mp4", 1), ("a.npy", 2)):
        for side in ("real", "made"):
            write_video(tmp_path / side / name, frames_of(number))
    assert numbers(tmp_path / "real", tmp_path / "made") == [(1, 1), (2, 2)]


def test_a_generated_video_of_a_skipped_real_one_is_left_out(real: Path, tmp_path: Path) -> None:
    shutil.copytree(real, tmp_path / "made")
    (real / "test" / "clip_2.npy").write_bytes(b"damaged")
    pairs = pair_videos(index_clips(real), index_clips(tmp_path / "made"))
    assert pairs.how == "by name"
    assert [path.name for path in pairs.made.paths] == [f"clip_{n}.npy" for n in (3, 4, 0, 1)]
    assert "its real video is skipped" in pairs.unpaired[0][1]


def test_pairing_by_order_is_refused_if_a_number_is_missing(real: Path, tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write_video(tmp_path / "made" / f"x{number}.npy", frames_of(number))
    with pytest.raises(ValueError, match=r"1 gap in the numbers, 3 follows 1"):
        pair_videos(index_clips(real), index_clips(tmp_path / "made"))
    (tmp_path / "made" / "x3.npy").unlink()
    assert pair_videos(index_clips(real), index_clips(tmp_path / "made")).how == "by order"


def test_a_file_name_of_255_bytes_stops_nobody(tmp_path: Path) -> None:
    for side in ("real", "made"):
        write_video(tmp_path / side / "a.npy", frames_of(0))
        (tmp_path / side / "a.npy").rename(tmp_path / side / f"{'a' * 251}.npy")
        write_video(tmp_path / side / "b.npy", frames_of(1))
    assert numbers(tmp_path / "real", tmp_path / "made") == [(0, 0), (1, 1)]
