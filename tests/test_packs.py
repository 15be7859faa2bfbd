"""Tests of packs: the clips, their order, pixels and training samples are those of the folder that was packed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vidm.cli import train_main
from vidm.datasets import Clips, FrameTriplets, ResumableSampler, SingleFrames, fit_frames
from vidm.layouts import ClipIndex, index_clips
from vidm.packs import is_pack, list_pack, probe, read_frames, write_pack
from vidm.sampling import list_content, read_first_frame
from vidm.video_io import VideoError, read_video, write_video

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import pack_dataset

NUM_FRAMES = 6
RESOLUTION = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of every kind, size and length, in folders, with names that are difficult for tar and WebDataset."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def frames(num_frames: int, height: int, width: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (num_frames, height // 8, width // 8, 3), np.uint8)
        return coarse.repeat(8, axis=1).repeat(8, axis=2)

    write_video(folder / "train" / "video_2.mp4", frames(9, 32, 48))
    write_video(folder / "train" / "video_10.mp4", frames(8, 48, 32))
    write_video(folder / "v_Diving_g01.c01.gif", frames(7, 32, 32))
    write_video(folder / "v_Diving_g01.c02.npy", frames(6, 24, 32))
    write_video(folder / "frames" / "12", frames(8, 32, 40))
    photos = folder / "frames" / "gr\u00fcn und blau"
    photos.mkdir()
    for number, frame in enumerate(frames(7, 32, 40)):
        Image.fromarray(frame).save(photos / f"{number}.JPG")
    return folder


def pack_of(data: Path, out: Path, *options: str) -> Path:
    pack_dataset.main(["--data", str(data), "--out", str(out), "--layout", "both", *options])
    return out


@pytest.fixture(scope="module")
def encoded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_of(data, tmp_path_factory.mktemp("packs") / "encoded")


@pytest.fixture(scope="module")
def raw(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_of(data, tmp_path_factory.mktemp("packs") / "raw", "--raw", str(RESOLUTION))


@pytest.fixture(params=["encoded", "raw"])
def pack(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    """A pack that a test may damage."""
    return Path(shutil.copytree(pack, tmp_path / "copy"))


def clips_of(folder: Path, min_frames: int = 1) -> ClipIndex:
    """Return the clips of a pack, or of the folder with videos and folders of frames."""
    return index_clips(folder, min_frames, "auto" if is_pack(folder) else "both")


def shard_of(pack: Path) -> Path:
    (shard,) = pack.glob("*.tar")
    return shard


def samples(folder: Path, workers: int = 0, context: str | None = None) -> list[dict[str, torch.Tensor]]:
    triplets = FrameTriplets(clips_of(folder, NUM_FRAMES), RESOLUTION, NUM_FRAMES, seed=3)
    sampler = ResumableSampler(len(triplets), batch_size=4, seed=3, start_step=1, num_steps=6)
    with warnings.catch_warnings():
        # From Python 3.12 on, forking a process that has threads warns; PyTorch's threads are not affected.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        return list(DataLoader(triplets, batch_sampler=sampler, num_workers=workers, multiprocessing_context=context))


# Equal to the folder


def test_a_pack_lists_the_clips_of_its_folder_in_the_same_order(data: Path, pack: Path) -> None:
    ours, theirs = index_clips(pack), clips_of(data)
    assert [path.relative_to(pack) for path in ours.paths] == [path.relative_to(data) for path in theirs.paths]
    assert ours.num_frames == theirs.num_frames
    assert len(ours.paths) == 6
    assert ours.skipped == []


@pytest.mark.parametrize(
    ("kind", "workers", "context"),
    [("encoded", 0, None), ("raw", 0, None), ("encoded", 2, "fork"), ("raw", 2, "fork"), ("raw", 1, "spawn")],
)
def test_training_samples_from_a_pack_equal_those_from_the_folder(
    data: Path, request: pytest.FixtureRequest, kind: str, workers: int, context: str | None
) -> None:
    ours, theirs = samples(request.getfixturevalue(kind), workers, context), samples(data)
    assert len(ours) == len(theirs) == 6
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        assert all(torch.equal(our[name], their[name]) for name in our)


def test_every_frame_of_an_encoded_pack_equals_that_of_the_folder(data: Path, encoded: Path) -> None:
    for path in clips_of(data).paths:
        video, inside = read_video(path), encoded / path.relative_to(data)
        np.testing.assert_array_equal(read_frames(inside, range(len(video))), video)
        np.testing.assert_array_equal(read_frames(inside, [5, 0, 5]), video[[5, 0, 5]])
        assert probe(inside) == probe(path)


def test_a_raw_pack_contains_the_squares_of_the_folder(data: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_dataset, "FRAMES_AT_ONCE", 3)
    in_parts = pack_of(data, raw.parent / "in_parts", "--raw", str(RESOLUTION))
    for path in clips_of(data).paths:
        squares = fit_frames(read_video(path), RESOLUTION)
        for pack in (raw, in_parts):
            np.testing.assert_array_equal(read_frames(pack / path.relative_to(data), range(len(squares))), squares)
            assert probe(pack / path.relative_to(data)) == (len(squares), RESOLUTION, RESOLUTION, probe(path).fps)


def test_single_frames_and_clips_are_read_from_a_pack(data: Path, raw: Path) -> None:
    for ours, theirs in (
        (SingleFrames(clips_of(f), RESOLUTION, seed=1, anywhere=True)[2, 4]["frame"] for f in (raw, data)),
        (torch.from_numpy(Clips(clips_of(f), 3, RESOLUTION, stride=2)[3][0]) for f in (raw, data)),
    ):
        assert torch.equal(ours, theirs)


def test_a_folder_of_frames_becomes_a_pack_of_one_clip(data: Path, tmp_path: Path) -> None:
    pack = pack_of(data / "frames" / "12", tmp_path / "pack")
    index = index_clips(pack)
    assert index.paths == [pack]
    np.testing.assert_array_equal(read_frames(pack, [7, 2]), read_video(data / "frames" / "12")[[7, 2]])


def test_packs_are_found_below_the_indexed_folder(data: Path, encoded: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded, tmp_path / "train")
    shutil.copytree(data / "frames" / "12", tmp_path / "val")
    names = [str(path.relative_to(tmp_path)) for path in index_clips(tmp_path).paths]
    assert names == [*(f"train/{p.relative_to(data)}" for p in clips_of(data).paths), "val"]


def test_a_pack_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    for level in (10, 20):
        shutil.rmtree(tmp_path / "pack", ignore_errors=True)
        with write_pack(tmp_path / "pack") as pack:
            pack.add_raw("clip", np.full((2, 8, 8, 3), level, np.uint8))
        assert (read_frames(tmp_path / "pack" / "clip", [1]) == level).all()


# The shards


def test_tar_unpacks_the_original_files(data: Path, encoded: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", str(shard_of(encoded)), "-C", str(tmp_path)], check=True)
    listed = subprocess.run(["tar", "tf", str(shard_of(encoded))], check=True, capture_output=True, text=True)
    assert sorted(listed.stdout.split()) == sorted(os.listdir(tmp_path))
    assert shard_of(encoded).read_bytes()[-1024:] == bytes(1024)  # the end of an archive
    for number, path in enumerate(clips_of(data).paths):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        unpacked = sorted(file for file in tmp_path.glob(f"{number:08d}.*") if file.suffix != ".json")
        assert [file.read_bytes() for file in unpacked] == [file.read_bytes() for file in files]
        assert [file.suffix for file in unpacked] == [file.suffix.lower() for file in files]


def test_the_members_of_a_clip_are_consecutive_and_have_one_key(data: Path, pack: Path) -> None:
    with tarfile.open(shard_of(pack), "r:") as shard:
        split = [re.fullmatch(r"([^./]+)\.(.+)", name) for name in shard.getnames()]  # WebDataset's rule
        keys = [match[1] for match in split if match]
        assert len(keys) == len(split)
        assert keys == sorted(keys)
        assert sorted(set(keys)) == [f"{number:08d}" for number in range(6)]
        name = shard.extractfile("00000003.json").read().decode()
    assert name == f'{{"name": "{clips_of(data).paths[3].relative_to(data)}"}}'


def test_numpy_reads_the_raw_members(data: Path, raw: Path) -> None:
    with tarfile.open(shard_of(raw), "r:") as shard:
        unpacked = np.load(BytesIO(shard.extractfile("00000002.npy").read()))
    np.testing.assert_array_equal(unpacked, fit_frames(read_video(clips_of(data).paths[2]), RESOLUTION))


def test_shards_do_not_exceed_their_size_and_clips_are_never_split(tmp_path: Path) -> None:
    videos = np.random.default_rng(0).integers(0, 256, (7, 4, 8, 8, 3), np.uint8)
    with write_pack(tmp_path / "pack", shard_bytes=8192) as pack:
        for number, video in enumerate(videos):
            pack.add_raw(f"{number}", video)
    shards = sorted((tmp_path / "pack").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"shard-{number:06d}.tar" for number in range(4)]
    assert all(shard.stat().st_size <= 8192 for shard in shards)
    listed = [subprocess.check_output(["tar", "tf", str(shard)], text=True).split() for shard in shards]
    assert [len(names) for names in listed] == [4, 4, 4, 2]
    for number, video in enumerate(videos):
        np.testing.assert_array_equal(read_frames(tmp_path / "pack" / f"{number}", range(4)), video)


def test_the_same_folder_gives_the_same_pack(data: Path, pack: Path, tmp_path: Path) -> None:
    options = ["--raw", str(RESOLUTION)] if pack.name == "raw" else []
    again = pack_of(data, tmp_path / "again", *options)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in pack.iterdir()}


# Damage


def test_a_clip_with_a_changed_byte_is_reported_and_replaced_by_the_next(
    data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_clips(copy)
    with tarfile.open(shard_of(copy), "r:") as shard:
        (member,) = (member for member in shard.getmembers() if re.match(r"00000005\.(npy|gif)", member.name))
    changed = bytearray(shard_of(copy).read_bytes())
    changed[member.offset_data + 200] ^= 1  # a pixel of frame 0
    shard_of(copy).write_bytes(changed)

    bad = index.paths[5]
    with pytest.raises(VideoError, match=rf"{shard_of(copy)}: bytes of {bad.relative_to(copy)} have changed"):
        read_frames(bad, [0])
    ours, theirs = (SingleFrames(clips_of(f), RESOLUTION, seed=0, flip=False) for f in (copy, data))
    for epoch in range(2):
        for number, place in enumerate([0, 1, 2, 3, 4, 0]):
            assert torch.equal(ours[epoch, number]["frame"], theirs[epoch, place]["frame"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"replaced by the next video: {shard_of(copy)}: bytes of {bad.relative_to(copy)}")


def test_a_truncated_shard_loses_only_the_clips_after_the_cut(data: Path, copy: Path) -> None:
    whole = index_clips(copy)
    with tarfile.open(shard_of(copy), "r:") as shard:
        cut = max(m.offset_data + m.size for m in shard.getmembers() if m.name.startswith("00000004.")) - 1
    os.truncate(shard_of(copy), cut)
    for bad, num_frames in zip(whole.paths[4:], whole.num_frames[4:], strict=True):  # in a run that began before
        with pytest.raises(VideoError, match=rf"{shard_of(copy)}: truncated before the end of "):
            read_frames(bad, range(num_frames))
    os.utime(copy / "vidm-pack.json")
    index = index_clips(copy)
    assert index.paths == whole.paths[:4]
    assert [path for path, _ in index.skipped] == whole.paths[4:]
    assert all(str(shard_of(copy)) in reason for _, reason in index.skipped)
    assert probe(index.paths[0]) == probe(whole.paths[0])


def test_a_missing_shard_is_named_in_the_error(copy: Path) -> None:
    clips = index_clips(copy).paths
    shard = shard_of(copy)
    shard.unlink()
    with pytest.raises(VideoError, match=f"{shard}: cannot be read"):
        read_frames(clips[0], [0])
    os.utime(copy / "vidm-pack.json")
    with pytest.raises(ValueError, match=f"none of the 6 videos in {copy} can be read; the first: {shard}"):
        index_clips(copy)


@pytest.mark.parametrize("name", ["vidm-pack.json", "vidm-pack.table"])
def test_a_damaged_index_is_named_in_the_error(encoded: Path, tmp_path: Path, name: str) -> None:
    for number, damage in enumerate((lambda b: b[:-8], lambda b: b"", lambda b: b"[]" + b[2:], lambda b: None)):
        pack = Path(shutil.copytree(encoded, tmp_path / f"{number}"))
        damaged = damage((pack / name).read_bytes())
        (pack / name).unlink()
        if damaged is not None:
            (pack / name).write_bytes(damaged)
        elif name == "vidm-pack.json":
            continue  # without it, the folder is not a pack
        with pytest.raises(VideoError, match=rf"{pack}/vidm-pack\.json: not a readable pack index"):
            index_clips(pack)


def test_a_frame_or_clip_that_does_not_exist_is_named_in_the_error(pack: Path) -> None:
    clip = index_clips(pack).paths[0]
    for index in (8, -1):
        with pytest.raises(
            VideoError, match=rf"{clip}: frame {index} was requested, but it has 8 frames, counted from 0"
        ):
            read_frames(clip, [0, index])
    with pytest.raises(VideoError, match=rf"{pack}/nothing\.mp4: the pack {pack} has no clip of that name"):
        read_frames(pack / "nothing.mp4", [0])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_frames(pack.parent / "nothing.mp4", [0])
    with pytest.raises(ValueError, match="is not a pack"):
        list_pack(pack.parent)


def test_the_command_that_writes_a_pack_is_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my clips; $(ls)"
    with pytest.raises(ValueError, match="is not a pack") as refused:
        list_pack(folder)
    command = str(refused.value).split("`")[1]
    assert shlex.split(command)[-2:] == ["--out", str(folder)]


def test_an_undecodable_file_is_named_by_its_path_in_the_pack(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_video(data / "a.npy", np.zeros((3, 8, 8, 3), np.uint8))
    write_video(data / "b", np.zeros((3, 8, 8, 3), np.uint8))
    (data / "b" / "00001.png").write_bytes(b"not a picture")
    Image.new("RGB", (9, 8)).save(data / "b" / "00002.png")
    pack = pack_of(data, tmp_path / "pack")
    with pytest.raises(VideoError, match=f"{pack}/a.npy: frame 3 was requested"):
        read_frames(pack / "a.npy", [3])
    with pytest.raises(VideoError, match=f"{pack}/b frame 1: cannot be read"):
        read_frames(pack / "b", [1])
    with pytest.raises(VideoError, match=f"{pack}/b frame 2: is 9x8, but frame 0 is 8x8"):
        read_frames(pack / "b", [2])


def test_reading_leaves_no_open_and_no_temporary_files(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clips = index_clips(pack).paths
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for clip in clips * 3:
        read_frames(clip, [0, 5])
        with pytest.raises(VideoError):
            read_frames(clip, [99])
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)
    assert os.listdir(tmp_path) == []


# Packing


def test_an_interrupted_pack_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with write_pack(tmp_path / "pack") as pack:
            pack.add_raw("clip", np.zeros((2, 8, 8, 3), np.uint8))
            assert not (tmp_path / "pack").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [[], ["--raw", "8"]])
def test_bad_clips_are_reported_skipped_and_counted(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in ("a", "b", "c"):
        write_video(data / name, np.zeros((3, 8, 8, 3), np.uint8))
    (data / "d.mp4").write_text("not a video")
    (data / "b" / "00002.png").write_bytes(b"")  # only decoding detects this
    pack = pack_of(data, tmp_path / "pack", *options)
    shown = capsys.readouterr()
    bad = ["d.mp4", "b/00002.png"] if options else ["d.mp4"]
    lines = [line for line in shown.err.splitlines() if line.startswith("skipped: ")]
    assert all(str(data / name) in line for name, line in zip(bad, lines, strict=True))
    assert f"{4 - len(bad)} clips in 1 tar files" in shown.out
    assert f"; {len(bad)} skipped" in shown.out
    assert len(index_clips(pack).paths) == 4 - len(bad)


def test_errors_are_one_line_and_no_pack_is_left(
    data: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken"
    write_video(broken, np.zeros((2, 8, 8, 3), np.uint8))
    (broken / "00001.png").write_bytes(b"")
    for options, reason in (
        (["--data", str(tmp_path / "gone"), "--out", str(out)], "gone"),
        (["--data", str(data), "--out", str(encoded)], "already exists"),
        (["--data", str(data), "--out", str(out), "--raw", "0"], "--raw 0"),
        (["--data", str(data), "--out", str(out), "--shard-size", "-1"], "--shard-size -1"),
        (["--data", str(broken), "--out", str(out), "--raw", "8"], "no clip could be packed"),
    ):
        with pytest.raises(SystemExit) as caught:
            pack_dataset.main(options)
        assert caught.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert reason in line
        assert not out.exists()
    assert sorted(os.listdir(tmp_path)) == ["broken"]


def test_training_on_a_pack_gives_the_weights_of_training_on_the_folder(world: Path, tmp_path: Path) -> None:
    folders = {"folder": world, "pack": pack_of(world, tmp_path / "packed", "--raw", "32")}
    sums = []
    for name, folder in folders.items():
        flags = f"--preset tiny --data {folder} --out {tmp_path / name} --total-iters 1 --batch-size 2 --workers 0"
        train_main([*flags.split(), "--test-freq", "0"])
        (checkpoint,) = (tmp_path / name).glob("*.pt")
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        sums.append(zlib.crc32(b"".join(tensor.numpy().tobytes() for tensor in weights.values())))
    assert sums[0] == sums[1]


def test_first_frames_are_read_from_a_pack(pack: Path) -> None:
    for path in list_content(pack):
        assert np.array_equal(read_first_frame(path), read_frames(path, [0])[0])


def test_a_split_of_a_pack_is_a_subfolder_of_the_packed_folder(data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_video(tmp_path / "data" / split / "a.mp4", np.full((8, 16, 16, 3), len(split), np.uint8))
    pack = pack_of(tmp_path / "data", tmp_path / "pack")
    assert index_clips(pack, split="train").paths == [pack / "train" / "a.mp4"]
    assert len(index_clips(pack).paths) == 2
    with pytest.raises(ValueError, match=r"^split val: the pack .* has no clips from a folder of that name"):
        index_clips(pack, split="val")
    with pytest.raises(ValueError, match=r"^layout frames: .* is a pack"):
        index_clips(pack, layout="frames")
