"""Tests of sampling videos from a checkpoint, in memory and to a folder."""

import errno
import json
import os
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule
from PIL import Image
from torch import nn

from vidm.checkpoint import Checkpoint, build_diffusion, build_model, save_checkpoint
from vidm.config import Config
from vidm.datasets import to_float
from vidm.diffusion import GaussianDiffusion
from vidm.files import WriteError, sha256_of
from vidm.first_frames import list_content, read_first_frame
from vidm.generator import Generator, load_generator
from vidm.layers import constant_index
from vidm.rounded_weights import with_autocast_weights, with_bf16_weights
from vidm.runtime import autocast, chosen_precision
from vidm.sample_config import SampleConfig
from vidm.samplers import sample_ddim, sample_ddpm
from vidm.sampling import sample_folder, video_path
from vidm.video_io import VideoError, read_video, write_video
from vidm.video_writing import video_writer

QUICK = {"num_frames": 3, "sampler": "ddim", "steps": "2"}


def settings(content: Path, out: Path, **values) -> SampleConfig:
    return SampleConfig(content=str(content), out=str(out), **(QUICK | values))


def names(folder: Path) -> list[str]:
    """Return the names of a folder's videos; check that each has a settings file."""
    videos = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    assert sorted(path.stem for path in folder.glob("*.json")) == [path.stem for path in videos]
    return [path.name for path in videos]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """Return a generator whose plain weights differ from its averaged ones, so that a mix-up is detected."""
    config = Config.from_preset("tiny").replaced({"image_size": 16})
    averaged = fill_by_rule(build_model(config)).state_dict()
    plain = build_model(config).state_dict()
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_00000001.pt"
    save_checkpoint(path, Checkpoint(1, config, plain, averaged, {}))
    return load_generator(path, device="cpu")


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_sampling_uses_the_averaged_weights(generator):
    expected = fill_by_rule(build_model(generator.config)).state_dict()
    assert all(torch.equal(generator.model.state_dict()[k], v) for k, v in expected.items())


def test_a_generator_is_loaded_on_the_cpu_without_a_gpu(generator):
    assert load_generator(generator.path).device.type == "cpu"


def test_an_unknown_setting_is_a_type_error(generator, frame):
    for method in (generator.animate, generator.generate):
        with pytest.raises(TypeError, match="sampeler"):
            method(frame if method == generator.animate else 1, sampeler="ddim")


def test_a_video_begins_with_the_given_frame_of_any_type(generator, frame, tmp_path):
    image, video = Image.fromarray(frame), tmp_path / "first.npy"
    image.save(tmp_path / "first.png")
    write_video(video, np.stack([frame, 255 - frame]))
    given = (frame, image, to_float(frame[None])[0], tmp_path / "first.png", str(video))
    videos = [generator.animate(each, **QUICK) for each in given]
    assert videos[0].shape == (3, 16, 16, 3)
    assert np.array_equal(videos[0][0], frame)
    assert all(np.array_equal(video, videos[0]) for video in videos)


def test_a_file_that_is_not_there_is_named(generator, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        generator.animate(tmp_path / "nowhere.png")


def test_a_sampler_may_be_a_function_with_the_signature_of_ours(both, frame):
    _, generator = both
    seen = []

    def spy(diffusion, model, x_T, model_kwargs=None, noise=None):
        seen.append((diffusion.num_timesteps, diffusion.process == model.process, sorted(model_kwargs or {})))
        return sample_ddpm(diffusion, model, x_T, model_kwargs, noise)

    quick = QUICK | {"sampler": spy}
    assert np.array_equal(generator.animate(frame, **quick), generator.animate(frame, **(QUICK | {"sampler": "ddpm"})))
    assert seen == [(2, True, ["first", "flow", "frame_index", "previous"])] * 2
    assert np.array_equal(generator.generate(2, **quick), generator.generate(2, **(QUICK | {"sampler": "ddpm"})))
    assert seen[2] == (2, True, [])
    noisy = generator.animate(frame, **(QUICK | {"sampler": partial(sample_ddim, eta=0.5)}))
    assert np.array_equal(noisy, generator.animate(frame, **QUICK, eta=0.5))
    with pytest.raises(ValueError, match="bind it to a function"):
        generator.animate(frame, sampler=spy, eta=0.5)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda diffusion, model, x_T, model_kwargs: x_T, "model_kwargs, noise=noise.: got an unexpected .* 'noise'"),
        (lambda model: model, "cannot be called as sampler.diffusion, model, .*: too many positional"),
        (partial(sample_ddim, GaussianDiffusion()), r"the sampler partial cannot be called .*diffusion, model, x_T"),
        (lambda d, m, x_T, k, noise: x_T[0], r"like x_T, torch.float32 \[1, 3, 16, 16\] on cpu: got .* \[3, 16, 16\]"),
        (lambda d, m, x_T, k, noise: x_T.double(), r"got torch.float64 \[1, 3, 16, 16\] on cpu"),
        (lambda d, m, x_T, k, noise: None, "must return a tensor like x_T, .*: got NoneType"),
    ],
)
def test_a_function_that_is_no_sampler_is_told_what_is_expected(generator, frame, sampler, message):
    with pytest.raises(ValueError, match=message):
        generator.animate(frame, num_frames=2, sampler=sampler)


def test_the_process_of_a_checkpoint_is_one_call_and_the_default_one_is_refused(both, generator):
    _, complete = both
    diffusion = complete.diffusion(50)
    assert (diffusion.num_timesteps, diffusion.prediction) == (50, complete.config.diffusion.prediction)
    assert complete.diffusion().num_timesteps == 1000
    x_T = torch.randn(1, 3, 16, 16)
    assert sample_ddim(complete.diffusion(2, content=True), complete.content_model, x_T).shape == x_T.shape
    with pytest.raises(ValueError, match=r"prediction v and not eps: .*generator\.diffusion"):
        sample_ddim(GaussianDiffusion(respacing=2), complete.content_model, x_T)
    with pytest.raises(ValueError, match="no content generator"):
        generator.diffusion(content=True)


def test_progress_shows_a_bar_of_frames(both, frame, capsys):
    _, generator = both
    generator.animate(frame, **QUICK, progress=True)
    assert "frames: " in capsys.readouterr().err
    generator.generate(1, **QUICK, progress=True)
    assert "frames: " in capsys.readouterr().err
    generator.animate(frame, **QUICK)
    assert not capsys.readouterr().err


def test_mistakes_of_python_code_are_named(generator, frame):
    with pytest.raises(TypeError, match=r"^there is no setting num_frame of sampling; did you mean num_frames\?$"):
        generator.animate(frame, num_frame=5)
    with pytest.raises(TypeError, match=r"^out is a setting of sample_folder and has no effect on a video in memory$"):
        generator.animate(frame, out="videos")
    with pytest.raises(ValueError, match=r"got list; call animate for each of several, with index 0, 1, \.\.\.$"):
        generator.animate([frame, frame])
    with pytest.raises(ValueError, match=r"^num_samples 0: "):
        generator.generate(0)
    with pytest.raises(ValueError, match=r"in \[-1, 1\]; got values from 5 to 5$"):
        generator.animate(torch.full((3, 16, 16), 5.0))
    assert len(repr(generator)) < 400


def test_a_stream_yields_the_frames_of_animate_bit_for_bit(generator, frame):
    flags = QUICK | {"num_frames": 7, "anchor_every": 3, "condition_noise": 0.1}
    frames = generator.stream(frame, index=2, **flags)
    assert np.array_equal(np.stack(list(frames)), generator.animate(frame, index=2, **flags))


def test_a_stream_without_a_length_ends_only_without_anchors(generator, frame):
    flags = {"sampler": "ddim", "steps": 1}
    assert len(list(generator.stream(frame, **flags))) == 16
    endless = generator.stream(frame, **flags, anchor_every=5)
    assert len(list(islice(endless, 20))) == 20
    with pytest.raises(ValueError, match=r"^num_frames 17: .* anchor_every"):
        generator.stream(frame, 17)


def test_the_code_between_two_frames_of_a_stream_runs_in_its_own_precision(generator, frame):
    before = torch.backends.cuda.matmul.fp32_precision
    for _ in generator.stream(frame, **QUICK, precision="bf16"):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert torch.backends.cuda.matmul.fp32_precision == before


def test_the_default_length_of_a_video_is_that_of_training(generator, frame):
    assert len(generator.animate(frame, sampler="ddim", steps=1)) == 16


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_bfloat16_gives_nearly_the_same_video(generator, frame, precision):
    full, half = (generator.animate(frame, **QUICK, precision=p).astype(int) for p in ("fp32", precision))
    assert 0 < np.abs(full - half).mean() < 8


@pytest.mark.parametrize(
    "values", [{}, {"norm": "timestep"}, {"use_encoder": False}, {"use_previous": True}, {"generator": "content"}]
)
def test_bfloat16_weights_are_those_of_a_copy_with_nearly_the_same_output(tiny, values):
    model = fill_by_rule(build_model(tiny.replaced(values)))
    rounded = with_bf16_weights(model)
    dtypes = {name.split(".")[0]: tensor.dtype for name, tensor in rounded.state_dict().items()}
    assert dtypes.pop("spynet", torch.float32) == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    x_t, first, previous = torch.randn(3, 2, 3, 16, 16).clamp(-1, 1)
    condition = (
        {} if "generator" in values else {"frame_index": constant_index(3, x_t), "previous": previous, "first": first}
    )
    with torch.no_grad():
        expected, found = (network(x_t, constant_index(500, x_t), **condition) for network in (model, rounded))
    assert 0 < (found.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("values", [{}, {"norm": "timestep"}, {"use_encoder": False}, {"generator": "content"}])
def test_weights_cast_in_advance_give_the_output_of_autocast_bit_for_bit(tiny, values):
    model = fill_by_rule(build_model(tiny.replaced(values))).requires_grad_(False)
    cast = with_autocast_weights(model, torch.bfloat16)
    x_t, first, previous = torch.randn(3, 2, 3, 16, 16).clamp(-1, 1)
    condition = (
        {} if "generator" in values else {"frame_index": constant_index(3, x_t), "previous": previous, "first": first}
    )
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        expected, found = (network(x_t, constant_index(500, x_t), **condition) for network in (model, cast))
    assert torch.equal(found, expected)
    layers = {name for name, part in cast.named_modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)}
    kept = {name for name in layers if cast.get_parameter(f"{name}.weight").dtype == torch.float32}
    assert all(name.startswith("spynet") or name.endswith("linear_0") for name in kept)
    assert kept < layers


def test_auto_is_bf16_where_a_gpu_computes_in_it_else_tf32_and_fp32_on_a_cpu(monkeypatch):
    assert chosen_precision("auto", torch.device("cpu")) == "fp32"
    for native, expected in ((True, "bf16"), (False, "tf32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert chosen_precision("auto", torch.device("cuda")) == expected
        assert chosen_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.slow
def test_compiled_networks_generate_the_same_video(generator, frame):
    plain, compiled = (generator.animate(frame, **QUICK, compile=c).astype(int) for c in (False, True))
    assert np.abs(plain - compiled).max() <= 1
    assert generator._networks["motion", "fp32", True] is not generator._networks["motion", "fp32", False]


def test_compiled_networks_see_one_batch_size_although_the_last_batch_is_smaller(both, content, tmp_path, monkeypatch):
    modes, sizes = set(), set()

    def compiled(network, dynamic, mode):
        modes.add((dynamic, mode))
        network = deepcopy(network)
        network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    drawing = replace(both[1], _networks={})
    continuing = replace(drawing, content_model=None)
    given, plain, drawn = (tmp_path / name for name in ("given", "plain", "drawn"))
    sample_folder(continuing, settings(content, plain, batch_size=2, format="npy"))
    assert not sizes
    flags = {"batch_size": 2, "compile": True, "format": "npy"}
    sample_folder(continuing, settings(content, given, **flags))
    sample_folder(drawing, settings("", drawn, num_samples=3, **flags))
    assert modes == {(False, "reduce-overhead")}
    assert sizes == {2}
    assert names(given) == names(plain) == names(drawn) == [f"video_0000{i}.npy" for i in range(3)]
    last = [read_video(folder / "video_00002.npy").astype(int) for folder in (given, plain)]
    assert np.abs(last[0] - last[1]).max() <= 1


def test_frames_of_another_size_are_cropped_and_resized(generator):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    video = generator.animate(wide, **QUICK)
    assert (video[0] == 200).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "euler"}, "'euler'"),
        ({"sampler": "dpm-solver++", "eta": 0.5}, "^eta 0.5"),
        ({"anchor_every": 16}, "^anchor_every 16"),
        ({"anchor_every": -1}, "^anchor_every -1"),
        ({"condition_noise": -1.0}, "^condition_noise -1"),
        ({"steps": "0"}, "'0'"),
        ({"precision": "fp12"}, "'fp12'"),
        ({"psi": 1.5}, "^psi 1.5"),
        ({"eta": 1.5}, "^eta 1.5"),
        ({"eta": float("nan")}, "^eta nan"),
        ({"seed": -1}, "^seed -1"),
        ({"num_frames": 0}, "^num_frames 0"),
        ({"start_noise": "bogus"}, "'bogus'"),
        ({"steps": "2000"}, "2000"),
        ({"num_frames": 99}, "^num_frames 99: .* anchor_every"),
    ],
)
def test_invalid_settings_are_named_in_the_error(generator, frame, values, message):
    with pytest.raises(ValueError, match=message):
        generator.animate(frame, **(QUICK | values))


@pytest.fixture
def content(tmp_path, frame):
    folder = tmp_path / "content"
    folder.mkdir()
    for i in (10, 9, 2):
        Image.fromarray(np.roll(frame, i, axis=0)).save(folder / f"frame_{i}.png")
    return folder


def test_a_folder_gives_one_video_per_first_frame_in_natural_order(generator, content, frame, tmp_path):
    sample_folder(generator, settings(content, tmp_path / "out"))
    assert names(tmp_path / "out") == [f"video_{i:05d}.mp4" for i in range(3)]
    for i, shift in enumerate((2, 9, 10)):
        first = read_video(tmp_path / "out" / f"video_{i:05d}.mp4")[0].astype(int)
        others = [np.abs(first - np.roll(frame, other, axis=0)).mean() for other in (2, 9, 10)]
        assert int(np.argmin(others)) == (2, 9, 10).index(shift)


def test_a_video_that_does_not_fit_on_the_disk_leaves_nothing(generator, content, tmp_path, monkeypatch):
    @contextmanager
    def full(path: Path, fps: float):
        yield lambda frame: None
        raise WriteError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("vidm.sampling.video_writer", full)
    with pytest.raises(WriteError, match=r"video_0000\d.npy was not written: No space left on device"):
        sample_folder(generator, settings(content, tmp_path / "out", format="npy"))
    assert not list((tmp_path / "out").iterdir())


def test_videos_do_not_depend_on_the_batch_size(generator, content, tmp_path):
    for batch_size in (1, 3):
        sample_folder(generator, settings(content, tmp_path / str(batch_size), batch_size=batch_size))
    for i in range(3):
        one, three = (read_video(tmp_path / name / f"video_{i:05d}.mp4").astype(int) for name in "13")
        assert np.abs(one - three).max() <= 2


def test_content_may_be_a_video_or_folders_of_frames(frame, tmp_path, capsys):
    write_video(tmp_path / "a.mp4", np.stack([frame, frame]))
    for name in ("one", "two"):
        write_video(tmp_path / "frames" / name, np.stack([frame, frame]))
    assert list_content(tmp_path / "a.mp4") == [tmp_path / "a.mp4"]
    assert list_content(tmp_path / "frames") == [tmp_path / "frames" / "one", tmp_path / "frames" / "two"]
    assert (
        "2 folders of frames up to 1 level down; videos begin with the first frame of each" in capsys.readouterr().out
    )


def test_every_image_of_class_folders_is_a_first_frame(frame, tmp_path, capsys):
    names = ["cat/2.png", "cat/10.png", "cat/photo.jpg", "dog/0.png", "dog/small/1.png"]
    for name in [*names, "cat/2_mask.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(tmp_path / name)
    (tmp_path / "dog" / "3.ppm").write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_content(tmp_path)] == names
    found = capsys.readouterr().out
    assert "5 images in 3 folders; in cat, 2_mask.png not used; passed over: 1 .ppm (not read)" in found


@pytest.mark.parametrize("poster", ["poster.jpg", "posters/1.jpg", "poster.webp", "posters/1.gif"])
def test_videos_are_first_frames_and_images_beside_them_are_not(frame, tmp_path, capsys, poster):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", np.stack([frame, frame]))
    (tmp_path / poster).parent.mkdir(exist_ok=True)
    Image.fromarray(frame).save(tmp_path / poster)
    assert list_content(tmp_path) == [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    assert "passed over: 1 image in" in capsys.readouterr().out


def test_single_images_in_any_format_are_first_frames(frame, tmp_path):
    for name in ("a.png", "b.webp", "c.gif"):
        Image.fromarray(frame).save(tmp_path / name)
    assert list_content(tmp_path) == [tmp_path / name for name in ("a.png", "b.webp", "c.gif")]
    assert read_first_frame(tmp_path / "b.webp").shape == frame.shape


def test_frames_beside_masks_are_still_frames_of_videos(frame, tmp_path):
    for name in ("one", "two"):
        write_video(tmp_path / name, np.stack([frame, frame]))
        Image.fromarray(frame).save(tmp_path / name / "00001_mask.png")
    assert list_content(tmp_path) == [tmp_path / "one", tmp_path / "two"]


def test_first_frames_are_those_of_the_split_that_a_folder_a_csv_list_or_images_have(frame, tmp_path, capsys):
    for name in ("test/a.npy", "train/a.npy", "images/test/a.png", "images/train/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(frame)
        image.save(tmp_path / name) if name.endswith("png") else write_video(tmp_path / name, np.stack([frame, frame]))
    (tmp_path / "clips.csv").write_text("path,split\ntest/a.npy,test\ntrain/a.npy,train\n")
    assert list_content(tmp_path, split="test") == [tmp_path / "test" / "a.npy"]
    assert list_content(tmp_path, "csv", "train") == [tmp_path / "train" / "a.npy"]
    assert list_content(tmp_path / "images", split="test") == [tmp_path / "images" / "test" / "a.png"]
    capsys.readouterr()
    list_content(tmp_path / "clips.csv")
    assert "--split chooses from test, train" in capsys.readouterr().out
    for part in ({"split": "test"}, {"layout": "both"}):
        with pytest.raises(ValueError, match=r"has no effect: .*a\.npy is one file"):
            list_content(tmp_path / "test" / "a.npy", **part)


def test_an_archive_as_content_is_told_what_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "content.zip", "w") as archive:
        archive.writestr("a.png", b"")
    with pytest.raises(ValueError, match=r"content\.zip is an archive: unpack it"):
        list_content(tmp_path / "content.zip")


@pytest.mark.parametrize("suffix", [".png", ".mp4", ".npy", ".webp", ""])
def test_a_pipe_as_content_is_refused_without_waiting(tmp_path, suffix):
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"pipe{suffix} is a pipe or a device"):
        list_content(path)
    with pytest.raises(VideoError, match=f"pipe{suffix}: .*is a pipe or a device"):
        read_first_frame(path)


def test_an_unreadable_first_frame_is_reported_and_skipped(generator, content, tmp_path, capsys):
    (content / "frame_1.png").write_bytes(b"no picture")
    sample_folder(generator, settings(content, tmp_path / "out"))
    assert "frame_1.png" in capsys.readouterr().out
    assert names(tmp_path / "out") == [f"video_{i:05d}.mp4" for i in (1, 2, 3)]


def test_it_is_an_error_if_no_first_frame_can_be_read(generator, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the first frames"):
        sample_folder(generator, settings(tmp_path / "bad.png", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_if_the_content_is_missing_or_the_grid_is_too_large(generator, content, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sample_folder(generator, settings(tmp_path / "nowhere", out))
    with pytest.raises(ValueError, match=r"^grid 2x2 needs 4 videos, but only 3 are generated"):
        sample_folder(generator, settings(content, out, grid="2x2"))
    assert not out.exists()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_from_before_a_setting_existed_is_continued_with_its_default(generator, content, tmp_path):
    out = tmp_path / "out"
    sample_folder(generator, settings(content, out, num_samples=1))
    before = bytes_of(out)["video_00000.mp4"]
    record = json.loads((out / "video_00000.json").read_text())
    for name in ("class_name", "guidance", "fit", "weights", "eta"):
        del record["settings"][name]
    (out / "video_00000.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"video_00000\.mp4 already exists, with eta 0\.0 and not 0\.5"):
        sample_folder(generator, settings(content, out, eta=0.5))
    sample_folder(generator, settings(content, out))
    assert bytes_of(out)["video_00000.mp4"] == before


def test_videos_of_other_settings_are_an_error_and_are_not_changed(generator, content, tmp_path):
    out = tmp_path / "out"
    sample_folder(generator, settings(content, out, num_samples=1))
    before = bytes_of(out)
    with pytest.raises(ValueError, match=r"video_00000\.mp4 already exists, with seed 0 and not 1"):
        sample_folder(generator, settings(content, out, seed=1))
    assert bytes_of(out) == before
    (out / "video_00000.json").unlink()
    with pytest.raises(ValueError, match=r"video_00000\.mp4 already exists, without a file of its settings"):
        sample_folder(generator, settings(content, out))
    with pytest.raises(ValueError, match=r"video_00000\.mp4 already exists, in another format"):
        sample_folder(generator, settings(content, out, format="npy"))


def test_other_files_in_the_folder_are_not_changed(generator, content, tmp_path):
    out = tmp_path / "out"
    write_video(out / "other.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    before = bytes_of(out)
    sample_folder(generator, settings(content, out, num_samples=1))
    assert bytes_of(out).items() >= before.items()
    assert (out / "video_00000.mp4").exists()


@pytest.mark.parametrize("suffix", ["mp4", "gif", "frames", "npy"])
def test_every_format_is_read_back_and_has_a_file_of_its_settings(generator, content, tmp_path, suffix):
    sample_folder(generator, settings(content, tmp_path / "out", format=suffix, psi=0.5))
    made = read_video(video_path(settings(content, tmp_path / "out", format=suffix), 1))
    assert made.shape == (3, 16, 16, 3)
    exact = generator.animate(read_first_frame(content / "frame_9.png"), **QUICK, psi=0.5, index=1)
    if suffix == "mp4":  # 4:2:0 preserves only the brightness of noise
        made, exact = made.mean(axis=3), exact.mean(axis=3)
    assert np.abs(made.astype(int) - exact).mean() <= {"npy": 0.1, "frames": 0.1, "mp4": 16, "gif": 16}[suffix]
    record = json.loads((tmp_path / "out" / "video_00001.json").read_text())
    assert record["first_frame"] == str(content / "frame_9.png")
    assert record["settings"]["checkpoint_sha256"] == sha256_of([generator.path])
    expected = {"seed": 0, "sampler": "ddim", "steps": "2", "psi": 0.5, "num_frames": 3, "frame_stride": 1}
    expected["precision"] = "fp32"  # what auto is on a CPU
    assert record["settings"].items() >= expected.items()


@pytest.mark.parametrize("gone", [["video_00001"], ["video_00000", "video_00004"]])
def test_an_interrupted_run_resumes_to_the_same_files(generator, content, tmp_path, gone):
    whole, stopped = (settings(content, tmp_path / n, num_samples=5, batch_size=2, format="npy") for n in ("a", "b"))
    for each in (whole, stopped):
        sample_folder(generator, each)
    for name in gone:
        (tmp_path / "b" / f"{name}.npy").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").glob("*.npy")}
    sample_folder(generator, stopped)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_a_killed_run_left_half_written_is_removed_and_other_hidden_files_are_not(generator, content, tmp_path):
    out = tmp_path / "out"
    left, kept = (".video_00001-0123abcd.npy", ".video_00002-89abcdef"), (".video_mine.npy", ".video_00001-mine.npy")
    for name in (*left, *kept):
        write_video(out / name, np.zeros((1, 2, 2, 3), np.uint8))
    sample_folder(generator, settings(content, out, num_samples=1, format="npy"))
    assert {path.name for path in out.iterdir() if path.name[0] == "."} == set(kept)


def test_first_frames_are_reused_for_more_videos_and_a_message_is_printed(generator, content, tmp_path, capsys):
    sample_folder(generator, settings(content, tmp_path / "out", num_samples=7, format="npy"))
    assert "7 videos from 3 first frames" in capsys.readouterr().out
    videos = [np.load(tmp_path / "out" / f"video_{i:05d}.npy") for i in range(7)]
    assert np.array_equal(videos[6][0], videos[0][0])
    assert not np.array_equal(videos[6][1], videos[0][1])


def test_a_grid_of_the_first_videos_is_written_next_to_the_folder(generator, content, tmp_path):
    sample_folder(generator, settings(content, tmp_path / "out", num_samples=7, grid="2x3", format="npy"))
    mosaic = read_video(tmp_path / "out_grid.mp4")
    assert mosaic.shape == (3, 32, 48, 3)
    others = [np.load(tmp_path / "out" / f"video_{i:05d}.npy") for i in range(6)]
    cell = mosaic[:, 16:, 32:].mean(axis=3)
    assert int(np.argmin([np.abs(cell - other.mean(axis=3)).mean() for other in others])) == 5
    with pytest.raises(ValueError, match=r"^grid 2by3: give rows and columns"):
        sample_folder(generator, settings(content, tmp_path / "other", grid="2by3"))


def test_a_full_disk_leaves_no_incomplete_file_and_the_run_can_resume(generator, content, tmp_path, monkeypatch):
    written = []

    @contextmanager
    def full(path: Path, fps: float):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        with video_writer(path, fps) as write:
            yield write

    flags = {"format": "npy", "batch_size": 1}
    with monkeypatch.context() as patch:
        patch.setattr("vidm.sampling.video_writer", full)
        with pytest.raises(OSError, match="No space left"):
            sample_folder(generator, settings(content, tmp_path / "out", **flags))
    assert names(tmp_path / "out") == ["video_00000.npy", "video_00001.npy"]
    sample_folder(generator, settings(content, tmp_path / "out", **flags))
    assert len(names(tmp_path / "out")) == 3


@pytest.mark.parametrize("max_open", [1, 2, 64])
def test_the_videos_of_a_batch_are_written_while_they_are_made_up_to_a_limit(
    generator, content, tmp_path, monkeypatch, max_open
):
    open_now, most, seen = set(), [], []

    @contextmanager
    def counted(path: Path, fps: float):
        open_now.add(path)
        with video_writer(path, fps) as write:
            yield lambda frame: (write(frame), most.append(len(open_now)), seen.append(next_frame[0]))
        open_now.remove(path)

    next_frame, made = [0], generator.stream_batch

    def stream_batch(*arguments, **options):
        for frame in made(*arguments, **options):
            next_frame[0] += 1
            yield frame

    monkeypatch.setattr("vidm.sampling.MAX_OPEN", max_open)
    monkeypatch.setattr("vidm.sampling.video_writer", counted)
    monkeypatch.setattr(Generator, "stream_batch", lambda self, *a, **k: stream_batch(*a, **k))
    sample_folder(generator, settings(content, tmp_path / "out", format="npy"))
    assert max(most) == min(max_open, 3)
    assert (seen == sorted(seen) and set(seen) == {1, 2, 3}) is (max_open == 64)
    for i, shift in enumerate((2, 9, 10)):
        exact = generator.animate(content / f"frame_{shift}.png", **QUICK, index=i).astype(int)
        assert np.abs(np.load(tmp_path / "out" / f"video_{i:05d}.npy") - exact).max() <= 2


def test_each_kind_of_conversion_of_first_frames_is_printed_once(generator, tmp_path, capsys):
    folder = tmp_path / "content"
    folder.mkdir()
    Image.new("RGBA", (16, 16), (9, 9, 9, 128)).save(folder / "a.png")
    Image.new("RGBA", (16, 16), (9, 9, 9, 128)).save(folder / "b.png")
    Image.new("CMYK", (16, 16)).save(folder / "c.jpg")
    Image.fromarray(np.full((16, 16), 32768, dtype=np.uint16)).save(folder / "d.png")
    Image.new("RGB", (16, 16)).save(folder / "e.png")
    sample_folder(generator, settings(folder, tmp_path / "out"))
    said = capsys.readouterr().out
    assert said.count("transparency is blended with white") == 1
    assert f"{folder / 'c.jpg'}: CMYK is converted to RGB" in said
    assert f"{folder / 'd.png'}: 16 bits per channel are reduced to 8" in said
    assert "e.png" not in said


def test_a_checkpoint_whose_weights_do_not_fit_its_configuration_is_refused(generator, tmp_path):
    config = generator.config.replaced({"model_channels": 64})
    state = generator.model.state_dict()
    save_checkpoint(tmp_path / "wrong.pt", Checkpoint(1, config, state, state, {}))
    with pytest.raises(ValueError, match=r"wrong\.pt does not fit this network in \d+ tensors"):
        load_generator(tmp_path / "wrong.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Save a motion and a content checkpoint, and return their folder and the generator."""
    folder = tmp_path_factory.mktemp("both")
    for kind in ("motion", "content"):
        config = Config.from_preset("tiny").replaced({"image_size": 16, "generator": kind})
        state = fill_by_rule(build_model(config)).state_dict()
        save_checkpoint(folder / f"{kind}.pt", Checkpoint(1, config, state, state, {}))
    return folder, load_generator(folder / "motion.pt", folder / "content.pt", device="cpu")


def test_videos_from_scratch_do_not_depend_on_their_batch(both):
    _, generator = both
    videos = generator.generate(3, **QUICK)
    assert videos.shape == (3, 3, 16, 16, 3)
    assert not np.array_equal(videos[0, 0], videos[1, 0])
    alone = generator.generate(1, first_index=1, **QUICK)
    assert np.abs(videos[1].astype(int) - alone[0].astype(int)).max() <= 2


def test_generated_first_frames_may_take_more_steps_than_the_others(both):
    _, generator = both
    few, many = generator.generate(1, **QUICK), generator.generate(1, **QUICK, content_steps="5")
    assert np.array_equal(many[0, 0], generator.generate(1, **(QUICK | {"steps": "5"}))[0, 0])
    assert not np.array_equal(few[0, 0], many[0, 0])


def test_a_folder_of_videos_is_generated_from_scratch(both, tmp_path):
    _, generator = both
    sample_folder(generator, SampleConfig(out=str(tmp_path / "out"), num_samples=3, batch_size=2, **QUICK))
    assert names(tmp_path / "out") == [f"video_{i:05d}.mp4" for i in range(3)]


def test_a_checkpoint_of_the_wrong_kind_is_named_in_the_error(both):
    folder, _ = both
    with pytest.raises(ValueError, match=r"content\.pt is a content generator, and a motion generator is needed"):
        load_generator(folder / "content.pt")
    with pytest.raises(ValueError, match=r"motion\.pt is a motion generator, and a content generator is needed"):
        load_generator(folder / "motion.pt", folder / "motion.pt")


def test_videos_from_scratch_need_a_content_generator(generator):
    with pytest.raises(ValueError, match="content_path"):
        generator.generate(1, **QUICK)


def test_psi_narrows_the_sampling_space(generator, frame):
    def spread(psi: float) -> float:
        videos = [generator.animate(frame, **QUICK, psi=psi, seed=seed)[1].astype(float) for seed in range(4)]
        return float(np.std(videos, axis=0).mean())

    assert spread(0.0) == 0 < spread(0.3) < spread(1.0)
    with pytest.raises(ValueError, match=r"^psi 1\.5: give a number from 0 to 1"):
        generator.animate(frame, **QUICK, psi=1.5)


def test_resizing_of_first_frames_is_printed_once(generator, tmp_path, capsys):
    for i in range(3):
        path = tmp_path / "content" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(path)
    sample_folder(generator, settings(tmp_path / "content", tmp_path / "out", batch_size=1))
    assert capsys.readouterr().out.count("first frames of 20x40 (height x width) are cropped and resized to 16x16") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((16, 16, 3)),
        np.zeros((16, 16, 4), dtype=np.uint8),
        np.zeros((16, 16), dtype=np.uint8),
        np.zeros((0, 16, 3), dtype=np.uint8),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
        torch.full((3, 16, 16), 128.0),
        torch.full((3, 16, 16), float("nan")),
        torch.zeros(1, 3, 16, 16),
        None,
    ],
)
def test_an_invalid_first_frame_is_refused(generator, wrong):
    with pytest.raises(ValueError, match="first frame"):
        generator.animate(wrong, **QUICK)


def test_images_with_transparency_or_16_bits_are_converted_like_files(generator, tmp_path):
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((16, 16), 32768, dtype=np.uint16))
    assert (generator.animate(clear, **QUICK)[0] == 255).all()
    assert abs(int(generator.animate(deep, **QUICK)[0].mean()) - 128) <= 1


@pytest.mark.parametrize(
    ("name", "value"), [("num_samples", 0), ("batch_size", 0), ("fps", 0.0), ("fps", float("nan"))]
)
def test_invalid_settings_are_refused_before_anything_is_written(generator, content, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name} {value}"):
        sample_folder(generator, settings(content, tmp_path / "out", **{name: value}))
    assert not (tmp_path / "out").exists()


def test_unreadable_videos_are_reported_and_left_out(generator, frame, tmp_path, capsys):
    for name in "abc":
        write_video(tmp_path / "content" / f"{name}.mp4", np.stack([frame, frame]))
    (tmp_path / "content" / "b.mp4").write_bytes(b"no video")
    sample_folder(generator, settings(tmp_path / "content", tmp_path / "out"))
    assert "b.mp4" in capsys.readouterr().out
    assert len(names(tmp_path / "out")) == 2


def test_a_video_with_anchors_can_be_longer_than_in_training(generator, frame):
    video = generator.animate(frame, num_frames=40, sampler="dpm-solver++", steps=2, anchor_every=8)
    assert video.shape == (40, 16, 16, 3)
    short = generator.animate(frame, num_frames=9, sampler="dpm-solver++", steps=2)
    assert np.array_equal(video[:9], short), "up to its first anchor a video is the same without anchors"


def test_condition_noise_keeps_the_first_frame_and_is_reproducible(generator, frame):
    noisy, again, without = (generator.animate(frame, **QUICK, condition_noise=level) for level in (0.5, 0.5, 0.0))
    assert np.array_equal(noisy, again)
    assert np.array_equal(noisy[0], without[0])


def test_given_first_frames_are_continued_also_if_there_is_a_content_generator(both, tmp_path, frame):
    folder, generator = both
    Image.fromarray(frame).save(tmp_path / "first.png")
    sample_folder(generator, settings(tmp_path / "first.png", tmp_path / "given"))
    sample_folder(generator, SampleConfig(out=str(tmp_path / "drawn"), **QUICK, num_samples=1))
    given, drawn = (json.loads((tmp_path / name / "video_00000.json").read_text()) for name in ("given", "drawn"))
    assert (given["first_frame"], drawn["first_frame"]) == (str(tmp_path / "first.png"), "drawn")
    assert given["settings"]["content_checkpoint_sha256"] is None
    assert drawn["settings"]["content_checkpoint_sha256"] == sha256_of([folder / "content.pt"])
    sample_folder(
        load_generator(folder / "motion.pt", device="cpu"), settings(tmp_path / "first.png", tmp_path / "one")
    )
    one, two = ((tmp_path / name / "video_00000.mp4").read_bytes() for name in ("given", "one"))
    assert one == two


def test_condition_noise_is_by_default_the_largest_of_the_training_and_is_recorded(generator, content, frame, tmp_path):
    config = generator.config.replaced({"condition_noise": 0.3})
    path = tmp_path / "checkpoint_00000001.pt"
    save_checkpoint(path, Checkpoint(1, config, {}, generator.model.state_dict(), {}))
    trained = load_generator(path, device="cpu")
    levels = [trained.condition_noise(SampleConfig(condition_noise=given)) for given in (None, 0.0, 0.5)]
    assert levels == [0.3, 0.0, 0.5]
    sample_folder(trained, settings(content, tmp_path / "out", num_samples=1))
    record = json.loads((tmp_path / "out" / "video_00000.json").read_text())
    assert record["settings"]["condition_noise"] == 0.3
    default, same, without = (trained.animate(frame, **QUICK, condition_noise=level) for level in (None, 0.3, 0.0))
    assert np.array_equal(default, same)
    assert not np.array_equal(default, without)


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_processes_or_on_a_kill(generator, content, tmp_path):
    script = Path(__file__).parent.parent / "diffusion_ddp_accum_constant_cu.py"

    def command(out: Path, processes: int) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        flags = f"--test --resume {generator.path} --content {content} --out {out} -ns 23 -b 2 --num-frames 6"
        words = [sys.executable, *(launcher if processes > 1 else []), script, *flags.split()]
        return [*map(str, words), "--steps", "20", "--format", "npy"]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        done = subprocess.run(command(tmp_path / str(processes), processes), capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr.decode()
    killed = subprocess.Popen(command(tmp_path / "killed", 1), stderr=subprocess.DEVNULL, env=environment)
    while len(list((tmp_path / "killed").glob("*.npy"))) < 5:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert len(list((tmp_path / "killed").glob("video_*.npy"))) < 23
    done = subprocess.run(command(tmp_path / "killed", 2), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    whole = bytes_of(tmp_path / "1")
    assert len(whole) == 2 * 23
    assert bytes_of(tmp_path / "2") == whole
    assert {name: data for name, data in bytes_of(tmp_path / "killed").items() if name in whole} == whole


def test_first_frames_are_drawn_in_ancestral_steps_on_the_spacing_of_ddim(generator):
    steps, noises = [], []

    def denoiser(x_t, t):
        steps.append(t.tolist())
        noises.append(x_t)
        return torch.zeros(len(x_t), 6, *x_t.shape[2:])

    tiny = Config.from_preset("tiny").replaced({"generator": "content", "image_size": 8, "prediction": "eps"})
    with_content = replace(generator, content_model=denoiser, content_config=tiny)
    sample = SampleConfig(content_steps="ddim100", sampler="ddpm")
    assert with_content.draw_first_frames([0, 1], sample).shape == (2, 8, 8, 3)
    assert steps == [[t, t] for t in range(990, -1, -10)]
    # An ancestral step adds noise: with a prediction of zero noise and clipping, DDIM's would only rescale x_t.
    posterior = build_diffusion(tiny, respacing="ddim100").p_mean_variance(denoiser, noises[0], torch.tensor([99, 99]))
    assert 0.5 < ((noises[1] - posterior.mean) / posterior.variance.sqrt()).std() < 2


def test_sampling_without_first_frames_is_an_error_and_writes_nothing(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"give first frames \(content\) or .* \(content_path of load_generator\)"):
        sample_folder(generator, SampleConfig(steps="2"))
    assert not list(tmp_path.iterdir())


def test_a_truncated_start_is_shared_by_the_frames_of_a_video_as_well(generator, frame, monkeypatch):
    noises = []
    monkeypatch.setattr("vidm.generator.roll_out", lambda *a: noises.append(a[4]) or iter(torch.zeros(1, 1, 3, 16, 16)))
    generator.animate(frame, psi=0.5)
    one, two = (noises[0](frame_index, 0, (3, 16, 16)) for frame_index in (1, 2))
    assert torch.equal(one, two)


def test_generating_more_frames_than_trained_is_refused_before_first_frames_are_drawn(generator):
    with pytest.raises(ValueError, match=r"^num_frames 17"):
        generator.generate(1, num_frames=17)
