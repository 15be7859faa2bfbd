"""Tests of frames that are not square: how they are fitted, and every command on them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule
from test_packs import pack_dataset

from vidm.checkpoint import build_model, load_checkpoint
from vidm.cli import train_main
from vidm.cli_evaluate import evaluate_fvd_main
from vidm.clip_choice import ClipSelection, choose_clips, taken
from vidm.config import Config
from vidm.datasets import FrameTriplets, fit_frames
from vidm.detectors import load_detector
from vidm.frame_size import frame_size
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.metrics import compute_fvd
from vidm.model import ContentGenerator, MotionGenerator, resized_constant
from vidm.resume import resumed_config
from vidm.sample_config import SampleConfig
from vidm.sample_report import write_sample_report
from vidm.sampling import sample_folder
from vidm.trainer import Trainer
from vidm.training_run import fit
from vidm.validation import Validator
from vidm.video_io import read_video, write_video

CPU = torch.device("cpu")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def turned(clip: np.ndarray) -> np.ndarray:
    """Frames with rows and columns exchanged."""
    return clip.transpose(0, 2, 1, 3)


# Fitting


def test_crop_takes_the_largest_central_part_of_the_wanted_shape() -> None:
    clip = noise(2, 20, 60)
    np.testing.assert_array_equal(fit_frames(clip, (20, 40)), clip[:, :, 10:50])
    np.testing.assert_array_equal(fit_frames(turned(clip), (40, 20)), turned(clip)[:, 10:50])
    np.testing.assert_array_equal(fit_frames(clip, (10, 20)), fit_frames(clip[:, :, 10:50], (10, 20)))


def test_pad_puts_the_whole_frame_between_two_equal_black_bars() -> None:
    clip = noise(2, 20, 60)
    padded = fit_frames(clip, (30, 60), "pad")
    np.testing.assert_array_equal(padded[:, 5:25], clip)
    assert not padded[:, [*range(5), *range(25, 30)]].any()
    np.testing.assert_array_equal(fit_frames(turned(clip), (60, 30), "pad"), turned(padded))


@pytest.mark.parametrize("way", ["crop", "pad"])
def test_frames_of_the_right_size_are_not_changed(way: str) -> None:
    clip = noise(1, 6, 10)
    np.testing.assert_array_equal(fit_frames(clip, (6, 10), way), clip)


@pytest.mark.parametrize(("way", "steps"), [("crop", 5), ("pad", 10)])
@pytest.mark.parametrize("turn", [lambda clip: clip, turned])
def test_nothing_is_stretched(way: str, steps: int, turn) -> None:
    """Two levels per pixel along both sides, scaled by 2/5 to crop and by 1/5 to pad."""
    y, x = np.mgrid[:40, :60]
    ramp = np.stack([2 * y, 2 * x, 0 * y], axis=2)[None].astype(np.uint8)
    size = (16, 12) if turn is not turned else (12, 16)
    fitted = turn(fit_frames(turn(ramp), size, way)).astype(int)[0]
    middle = fitted[7:9, 4:8]
    assert np.abs(np.diff(middle[..., 0], axis=0) - steps).max() <= 1
    assert np.abs(np.diff(middle[..., 1], axis=1) - steps).max() <= 1


@pytest.mark.parametrize("way", ["crop", "pad"])
def test_the_thinnest_frames_are_fitted(way: str) -> None:
    assert fit_frames(noise(1, 1, 300), (16, 2), way).shape == (1, 16, 2, 3)
    assert fit_frames(noise(1, 300, 1), (2, 16), way).shape == (1, 2, 16, 3)


def test_another_way_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit is 'stretch': choose from crop, pad"):
        fit_frames(noise(1, 4, 6), 4, "stretch")


# Sizes


def test_a_square_has_one_form_and_settings_of_earlier_versions_are_read() -> None:
    square, config = Config().replaced({"image_size": (64, 64)}), Config().replaced({"image_size": (32, 64)})
    assert frame_size("64x64") == frame_size("64") == square.model.image_size == 64
    assert json.loads(json.dumps(square.to_dict()))["model"]["image_size"] == 64
    assert Config.from_dict({"model": {"image_size": 64}}) == square
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("text", ["16x", "x16", "16 x 24", "16X24", "-4", "", "16x24x3", "1.5", "٣"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="height x width as 48x64"):
        frame_size(text)


@pytest.mark.parametrize("value", [[16], [16, 24, 3], [16, True], ["16", "24"]])
def test_a_size_in_a_file_is_checked(value: list) -> None:
    with pytest.raises(ValueError, match=r"image_size is|the size of frames is"):
        Config.from_dict({"model": {"image_size": value}})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0x3", "--resolution 0x3: give a number from 1 to 8192"),
        ("16x9000", "--resolution 16x9000: give a number from 1 to 8192"),
        ("16x", "--resolution: '16x': give"),
        ("16 x 24", "--resolution: '16 x 24': give"),
        ("16x23", "16x23 pixels do not fit this network: with 2 levels both sides must be multiples of 2"),
    ],
)
def test_a_wrong_resolution_is_one_line(size, message, world, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        train_main(["--preset", "tiny", "--data", str(world), "--out", str(tmp_path / "run"), "--resolution", size])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


# Networks


@torch.no_grad()
def test_networks_take_their_size_as_a_side_or_as_height_and_width() -> None:
    narrow = {"model_channels": 32, "channel_mult": (1, 2), "attention_resolutions": (2,), "num_head_channels": 32}
    assert MotionGenerator(32, **narrow).state_dict().keys() == MotionGenerator((32, 16), **narrow).state_dict().keys()
    torch.manual_seed(0)
    square = ContentGenerator(16, num_res_blocks=1, **narrow)
    torch.manual_seed(0)
    same = ContentGenerator((16, 16), num_res_blocks=1, **narrow)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([3])
    assert torch.equal(square(x, t), same(x, t))
    wide = ContentGenerator((16, 24), num_res_blocks=1, **narrow)
    wide.load_state_dict(resized_constant(square.state_dict(), (16, 24)))
    assert wide(torch.randn(1, 3, 16, 24), t).shape == (1, 6, 16, 24)
    with pytest.raises(ValueError, match="frames of 24x16 pixels do not fit this network, made for 16x24"):
        wide(torch.randn(1, 3, 24, 16), t)


# Commands


@pytest.fixture
def wide(tiny: Config) -> Config:
    """Two steps at 16 x 24, with a checkpoint after each."""
    values = {"image_size": (16, 24), "fit": "pad", "total_iters": 2, "save_freq": 1, "video_timesteps": 4}
    return tiny.replaced(values)


def test_a_run_on_rectangles_resumes_samples_and_is_evaluated(wide: Config, tmp_path: Path, capsys) -> None:
    trainer = Trainer(wide, CPU)
    fit(trainer)
    assert "frames of 16x24 with black bars" in capsys.readouterr().out
    first, last = (load_checkpoint(Path(wide.train.out, f"checkpoint_{step:08d}.pt")) for step in (1, 2))
    assert last.config.model.image_size == (16, 24)
    with pytest.raises(ValueError, match="would change the samples"):
        resumed_config(first, {"fit": "crop"})
    again = Trainer(wide.replaced({"save_freq": 9}), CPU, resume=first)
    again.train_step(again.batches())
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in last.state_dict.items())

    preview = Validator(wide, trainer.data.held_out, trainer.data.samples(trainer.data.held_out, 0, False), CPU)
    preview.num_frames = 2
    assert preview.video(trainer.model).shape == (2, 2 * 16, len(trainer.data.held_out.paths) * 24, 3)

    for i in range(2):
        write_video(tmp_path / "content" / f"{i}.npy", noise(2, 40, 30))  # frames of another shape
    settings = SampleConfig(content=str(tmp_path / "content"), out=str(tmp_path / "out"), steps="1", format="npy")
    generator = load_generator(last.source, device="cpu")
    sample_folder(generator, settings)
    video = read_video(tmp_path / "out" / "video_00000.npy")
    assert video.shape == (4, 16, 24, 3)
    np.testing.assert_array_equal(video[:1], fit_frames(noise(2, 40, 30)[:1], (16, 24), "pad"))
    assert "first frames of 40x30 (height x width) are resized, with black bars, to 16x24" in capsys.readouterr().out
    streamed = np.stack(list(generator.stream(noise(1, 40, 30)[0], steps="1")))
    np.testing.assert_array_equal(streamed[0], video[0])
    assert streamed.shape == video.shape
    write_sample_report(generator, settings)
    assert "random-feature Frechet distance" in (tmp_path / "out" / "report.html").read_text().replace(
        "Random", "random"
    )


def test_a_content_generator_of_rectangles_draws_first_frames(wide: Config, tmp_path: Path) -> None:
    config = wide.replaced({"generator": "content", "total_iters": 1})
    trainer = Trainer(config, CPU)
    assert trainer.train_step(trainer.batches()) is not None
    assert fill_by_rule(build_model(config)).input.input.shape == (1, 3, 16, 24)
    validator = Validator(config, trainer.data.held_out, trainer.data.samples(trainer.data.held_out, 0, False), CPU)
    assert validator.video(trainer.model).shape == (1, 16, 4 * 24, 3)


def test_evaluation_fits_videos_as_asked_and_keeps_their_features_apart(tmp_path: Path) -> None:
    for name in ("real", "made"):
        for i in range(4):
            clip = np.random.default_rng(i + 9 * (name == "made")).integers(0, 256, (2, 20, 48, 3), np.uint8)
            write_video(tmp_path / name / f"{i}.npy", clip)
    chosen = choose_clips(ClipSelection(tmp_path / "real", 2, resolution=(16, 24), fit="pad"))
    np.testing.assert_array_equal(taken(chosen, [1])[0][0], chosen[1][0])
    folders, detector = (tmp_path / "real", tmp_path / "made"), load_detector("random", "cpu")
    values = {}
    for way in ("crop", "pad", "crop"):
        result = compute_fvd(*folders, detector, 2, resolution=(16, 24), fit=way, cache=tmp_path / "cache")
        assert (result.size, result.resolution, result.fit) == ((16, 24), (16, 24), way)
        assert values.setdefault(way, result.value) == result.value
    assert values["crop"] != values["pad"]
    flags = f"-dir1 {folders[0]} -dir2 {folders[1]} -n 2 -i3d random -r 16x24 --fit pad --json {tmp_path}/a.json"
    evaluate_fvd_main(flags.split())
    (record,) = json.loads((tmp_path / "a.json").read_text())["results"].values()
    assert record["resolution"] == [16, 24]
    assert record["value"] == pytest.approx(values["pad"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fit pad", "--fit has no effect without -r"),
        ("-r 0x3", "-r 0x3: give a number from 1 to 8192"),
        ("-r 16x", "'16x': give"),
    ],
)
def test_a_wrong_size_in_evaluation_is_one_line(flags: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        evaluate_fvd_main(f"-dir1 A -dir2 B {flags}".split())
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("way", ["crop", "pad"])
def test_training_on_a_raw_pack_of_rectangles_sees_the_samples_of_the_folder(world: Path, tmp_path: Path, way) -> None:
    pack = tmp_path / "pack"
    pack_dataset.main(["--data", str(world), "--out", str(pack), "--raw", "16x24", "--fit", way])
    samples = [FrameTriplets(index_clips(f), (16, 24), 4, seed=1, fit=way)[3, 2] for f in (world, pack)]
    assert samples[0]["first"].shape == (3, 16, 24)
    assert all(torch.equal(samples[0][name], samples[1][name]) for name in samples[0])


@pytest.mark.parametrize(
    ("flags", "message"), [("--raw 0x8", "--raw 0x8: give sides"), ("--fit pad", "--fit has no effect without --raw")]
)
def test_a_wrong_size_of_a_pack_is_one_line(world: Path, tmp_path: Path, flags: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        pack_dataset.main(["--data", str(world), "--out", str(tmp_path / "pack"), *flags.split()])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()
