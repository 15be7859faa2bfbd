"""Tests of the command line: the original code's flags, one-line errors, and whole runs."""

import argparse
import shlex
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from vidm import cli
from vidm.checkpoint import latest_checkpoint, load_checkpoint
from vidm.cli import sample_config, sample_main, train_config, train_main
from vidm.cli_evaluate import evaluate_fvd_main
from vidm.cli_flags import parse_flags, sample_parser, train_parser
from vidm.config import Config
from vidm.distributed import BACKENDS
from vidm.evaluate_flags import evaluate_parser
from vidm.generator import WEIGHTS
from vidm.presets import PRESETS
from vidm.runtime import exit_on_user_error
from vidm.sample_config import SampleConfig
from vidm.settings import flagged
from vidm.video_io import read_video
from vidm.world import write_dataset

ROOT = Path(__file__).parent.parent
ORIGINAL_DEFAULTS = {
    "dist_url": "tcp://localhost:10001",
    "batch_size": 256,
    "workers": 32,
    "image_size": 128,
    "total_iters": 800_000,
    "print_freq": 100,
    "test_freq": 1000,
    "save_freq": 1000,
}
SHARED_FLAGS = """
--batch-size --compile --condition-noise --dist-backend --dist-url --gpu --help --multiprocessing-distributed
--layout --num-frames --out --precision --rank --resolution --resume --seed --split --test --timeout --video-timesteps
--workers --world-size
""".split()
TRAINING_FLAGS = """
--accum-steps --checkpoint-activations --class-dropout --classes --config --content-frames --data --deterministic
--dry-run --ema-decay --eval-freq --fit --flow-range --frame-stride --generator --held-out --init --keep
--loss --lr --lr-schedule --max-bad-fraction --max-bad-steps --no-constant --no-encoder --norm --offset-noise --p2-gamma
--penalty-eps --prediction --preset --previous-frame --print-config --print-freq --save-freq --schedule --set
--spynet --start-iters --test-freq --test-split --total-iters --train-flow --warmup-iters --weight-decay
""".split()
SAMPLING_FLAGS = """
--anchor-every --class --content --content-resume --content-steps --eta --format --fps --grid --guidance --num-samples
--psi --report --sampler --start-noise --steps --weights
""".split()


def tiny_run(world: Path, out: Path, *flags: str) -> list[str]:
    common = "--preset tiny --resolution 16 --batch-size 4 --workers 0 --total-iters 1 --test-freq 0".split()
    return [*common, "--data", str(world), "--out", str(out), *flags]


def error_of(main, argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The only line that a failing command prints on stderr; its exit code is 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("usage", " "))]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("flag", ["--resume", "--init"])
def test_the_checkpoint_that_a_run_begins_from_is_freed_before_its_first_step(world, tmp_path, monkeypatch, flag):
    train_main(tiny_run(world, tmp_path / "run"))
    read, load_any = [], cli.load_any

    def load(*arguments, **options):
        checkpoint = load_any(*arguments, **options)
        read.append(weakref.ref(checkpoint))
        read.extend(weakref.ref(tensor) for tensor in checkpoint.state_dict.values())
        moments = checkpoint.optimizer["state"].values()
        read.extend(weakref.ref(moment["exp_avg"]) for moment in moments)
        return checkpoint

    monkeypatch.setattr(cli, "load_any", load)
    monkeypatch.setattr(cli, "fit", lambda trainer: left.extend(each for each in read if each() is not None))
    left: list[weakref.ref] = []
    file = str(tmp_path / "run" / "checkpoint_00000001.pt")
    train_main(tiny_run(world, tmp_path / ("run" if flag == "--resume" else "new"), flag, file))
    assert len(read) > 100
    assert not left


@pytest.mark.parametrize(("parser", "own"), [(train_parser, TRAINING_FLAGS), (sample_parser, SAMPLING_FLAGS)])
def test_the_flags_of_a_mode_are_fixed_and_its_help_shows_only_them(parser, own):
    shown = [action for action in parser()._actions if action.help != argparse.SUPPRESS]
    assert all(action.help for action in shown)
    assert {flag for a in shown for flag in a.option_strings if flag.startswith("--")} == {*SHARED_FLAGS, *own}
    text = parser().format_help()
    assert not [flag for flag in {*TRAINING_FLAGS, *SAMPLING_FLAGS} - {*own} if f"\n  {flag} " in text]


@pytest.mark.parametrize("flag", [*SAMPLING_FLAGS, "-ns"])
@pytest.mark.parametrize("value", [[], ["1"]])
def test_a_sampling_flag_is_refused_in_training(capsys, flag, value):
    assert error_of(train_main, [flag, *value], capsys) == f"error: {flag} is a sampling flag: add --test"


@pytest.mark.parametrize("flag", [flag for flag in [*TRAINING_FLAGS, "-p"] if flag != "--data"])
@pytest.mark.parametrize("main", [train_main, sample_main])
def test_a_training_flag_is_refused_in_sampling(capsys, flag, main):
    message = f"error: {flag} is a training flag: it has no effect on sampling"
    assert error_of(main, ["--test", "--resume", "FILE", f"{flag}=1"], capsys) == message


def test_a_folder_of_data_in_sampling_is_told_where_first_frames_are_given(capsys):
    message = "error: --data is a training flag: sampling takes first frames from --content"
    assert error_of(sample_main, ["--data", "DIR"], capsys) == message


def test_a_flag_cannot_be_abbreviated(capsys):
    message = "error: unrecognized arguments: --total-iter 3; did you mean --total-iters?"
    assert error_of(train_main, ["--total-iter", "3"], capsys) == message
    assert "-n 3; did you mean -ns?" in error_of(sample_main, ["-n", "3"], capsys)


@pytest.mark.parametrize(
    ("flag", "meant"), [("--batch_size", "--batch-size"), ("--dataset", "--data"), ("--step=3", "--steps")]
)
def test_an_unknown_flag_is_reported_with_the_one_that_may_be_meant(capsys, flag, meant):
    assert error_of(train_main, [flag], capsys) == f"error: unrecognized arguments: {flag}; did you mean {meant}?"
    assert error_of(train_main, ["--frobnicate"], capsys) == "error: unrecognized arguments: --frobnicate"


def test_every_flag_with_choices_offers_those_of_its_setting():
    for parser, sections in ((train_parser(), Config().sections()), (sample_parser(), [SampleConfig()])):
        offered = {action.dest: action.choices for action in parser._actions if action.choices}
        assert offered.pop("preset", PRESETS) == PRESETS
        assert offered.pop("weights", WEIGHTS) == WEIGHTS
        assert offered.pop("dist_backend") == BACKENDS
        choices = {f.name: f.metadata["choices"] for s in sections for f in flagged(s) if f.metadata["choices"]}
        assert offered == choices


def test_the_defaults_are_those_of_the_original_code():
    options = parse_flags([])
    config = train_config(options)[0]
    known = vars(options) | {k: v for section in config.to_dict().values() for k, v in section.items()}
    assert {name: known[name] for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS


def test_the_commands_of_the_original_code_parse():
    line = "--multiprocessing-distributed --world-size 1 --rank 0 --batch-size 48 --workers 24 --gpu 0 --seed 1"
    options = parse_flags(line.split())
    assert options.multiprocessing_distributed
    assert train_config(options)[0].train.batch_size == 48
    options = parse_flags([*line.split(), "--resolution", "128", *"--test --resume FILE --content DIR".split()])
    assert sample_config(options).batch_size == 48
    line = "-dir1 A -dir2 B -b 2 -r 256 -n 128 -ns 2038 -i3d ./i3d_torchscript.pt"
    options = evaluate_parser().parse_args(line.split())
    assert (options.dir1, options.batch, options.nsamples) == ("A", 2, 2038)
    options = evaluate_parser().parse_args(["--dir1", "A", "--dir2", "B"])
    assert (options.batch, options.resolution, options.nframes, options.i3d) == (32, None, None, None)


def test_a_runs_folder_says_how_to_repeat_it(world, tmp_path):
    out, new = tmp_path / "run", tmp_path / "new"
    train_main(tiny_run(world, out, "--set", "clip_norm=0.01", "--seed", "3"))
    program, script, *flags = shlex.split((out / "command.txt").read_text())
    assert (program, script) == ("python", "diffusion_ddp_accum_constant_cu.py")
    train_main([str(new) if word == "NEW_FOLDER" else word for word in flags])
    first, second = (load_checkpoint(folder / "checkpoint_00000001.pt") for folder in (out, new))
    assert second.config == first.config.replaced({"out": str(new)})
    assert all(torch.equal(second.state_dict[name], tensor) for name, tensor in first.state_dict.items())


def test_the_settings_that_changed_on_resuming_are_named_beside_the_command(world, tmp_path):
    run = tmp_path / "run"
    train_main(tiny_run(world, run, "--lr", "0.1"))
    command = (run / "command.txt").read_text()
    for steps, lr in (("2", "0.1"), ("3", "0.2"), ("4", "0.2")):
        train_main(["--resume", str(run), "--total-iters", steps, "--lr", lr])
    *comments, last = (run / "command.txt").read_text().splitlines(keepends=True)
    assert last == command
    assert comments == [
        "# resumed after step 1 with total_iters 1 -> 2\n",
        "# resumed after step 2 with total_iters 2 -> 3, lr 0.1 -> 0.2\n",
        "# resumed after step 3 with total_iters 3 -> 4\n",
    ]


def test_sampling_takes_the_newest_undamaged_checkpoint_of_a_folder_and_either_kind_of_weights(
    world, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "checkpoints"
    train_main(tiny_run(world, run, "--lr", "0.1"))
    train_main(["--resume", str(run), "--total-iters", "2"])
    (run / "checkpoint_00000003.pt").write_text("cut off")
    flags = f"--content {world} -ns 1 --num-frames 2 --steps 1 --format npy".split()
    capsys.readouterr()
    for resume, weights in (("auto", "ema"), ("checkpoints", "raw")):
        sample_main([*flags, "--resume", resume, "--out", weights, "--weights", weights])
        printed = capsys.readouterr().out
        assert "skipped: checkpoints/checkpoint_00000003.pt is truncated, damaged" in printed
        assert "sampling from checkpoints/checkpoint_00000002.pt" in printed
    ema, raw = (read_video(Path(name, "video_00000.npy")) for name in ("ema", "raw"))
    assert (ema != raw).any()
    again = [*flags, "--resume", "auto", "--out", "raw"]
    assert "already exists, with weights raw and not ema" in error_of(sample_main, again, capsys)
    shipped = str(ROOT / "pretrained_models" / "world" / "motion.safetensors")
    message = error_of(sample_main, [*flags, "--resume", shipped, "--weights", "raw"], capsys)
    assert "motion.safetensors has one kind of weights: leave --weights out" in message


def test_flags_override_the_preset_and_the_preset_overrides_the_defaults():
    config = train_config(parse_flags(["--preset", "tiny", "--lr", "0.5"]))[0]
    assert config.train.lr == 0.5
    assert config.model == Config.from_preset("tiny").model


def test_a_run_resumes_from_its_newest_checkpoint_and_its_samples_are_evaluated(world, tmp_path, capsys):
    out = tmp_path / "run"
    train_main(tiny_run(world, out, "--resume", "auto"))
    train_main(tiny_run(world, out, "--resume", "auto", "--total-iters", "3"))
    printed = capsys.readouterr().out
    assert "no checkpoint in" in printed
    assert f"resuming from {out / 'checkpoint_00000001.pt'}" in printed
    assert "--preset tiny has no effect: the settings of" in printed
    newest = latest_checkpoint(out)
    assert newest == out / "checkpoint_00000003.pt"

    videos = tmp_path / "videos"
    flags = f"--test --resume {newest} --content {world} --out {videos} -ns 3 --num-frames 4 --steps 2".split()
    train_main(flags)
    assert sorted(p.name for p in videos.glob("*.mp4")) == [f"video_{i:05d}.mp4" for i in range(3)]
    assert read_video(videos / "video_00002.mp4").shape == (4, 16, 16, 3)

    evaluate_fvd_main(["-dir1", str(world), "-dir2", str(videos), "-n", "4", "-r", "32", "-b", "2"])
    printed = capsys.readouterr().out
    assert "random-feature Frechet distance: not an FVD, not comparable with published numbers" in printed
    assert "12 real and 3 generated videos" in printed


def test_gpu_without_effect_for_several_processes_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(cli, "launch", lambda *_, **__: None)
    train_main(["--gpu", "0"])
    assert capsys.readouterr().out == ""
    train_main(["--gpu", "0", "--multiprocessing-distributed"])
    assert "--gpu has no effect: every process" in capsys.readouterr().out


def test_resuming_keeps_the_checkpoints_settings_and_refuses_another_network(world, tmp_path, capsys):
    out = tmp_path / "run"
    train_main(tiny_run(world, out, "--lr", "0.25"))
    path = out / "checkpoint_00000001.pt"
    checkpoint = load_checkpoint(path)
    capsys.readouterr()
    options = parse_flags(["--resume", str(path), "--total-iters", "9"])
    assert train_config(options)[0] == checkpoint.config.replaced({"total_iters": 9})
    for flags, message in (
        (["--resolution", "32"], "--resolution is 16x16 there and 32x32 here"),
        (
            ["--preset", "paper128"],
            "leave --preset paper128 out to use the checkpoint's",
        ),
        (["--loss", "mse"], "--loss is charbonnier there and mse here"),
    ):
        assert message in error_of(train_main, ["--resume", str(path), *flags], capsys)


def test_content_and_motion_generators_sample_videos_from_scratch(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "motion"))
    train_main(tiny_run(world, tmp_path / "content", "--generator", "content"))
    motion, content = (tmp_path / name / "checkpoint_00000001.pt" for name in ("motion", "content"))
    videos = tmp_path / "videos"
    quick = "--num-frames 3 --sampler ddim --steps 2 --psi 0.5 --start-noise video --workers 2 --resolution 64".split()
    train_main(f"--test --resume {motion} --content-resume {content} -ns 3 --out {videos}".split() + quick)
    assert sorted(p.name for p in videos.glob("*.mp4")) == [f"video_{i:05d}.mp4" for i in range(3)]
    printed = capsys.readouterr().out
    assert "--workers has no effect on sampling" in printed
    assert "--resolution has no effect: videos have the network's size, 16x16" in printed
    wrong = f"--test --resume {content} --content {world} --out {tmp_path / 'none'}".split()
    assert "is a content generator, and a motion generator is needed" in error_of(train_main, wrong, capsys)
    swapped = f"--test --resume {motion} --content-resume {motion} --out {tmp_path / 'none'}".split()
    assert "is a motion generator, and a content generator is needed" in error_of(train_main, swapped, capsys)
    outside = f"--test --resume {motion} --content {world} --psi 1.5 --out {tmp_path / 'none'}".split()
    assert "--psi 1.5: give a number from 0 to 1" in error_of(train_main, outside, capsys)
    beyond = f"--test --resume {motion} --content {world} --num-frames 17 --out {tmp_path / 'none'}".split()
    assert "--num-frames 17: the model was trained on 16 frames" in error_of(train_main, beyond, capsys)
    assert not (tmp_path / "none").exists()


def test_a_model_from_init_trains_at_another_resolution(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "first"))
    init = tmp_path / "first" / "checkpoint_00000001.pt"
    flags = f"--init {init} --resolution 32 --num-frames 8 --batch-size 4 --workers 0 --total-iters 1".split()
    train_main([*flags, "--data", str(world), "--out", str(tmp_path / "tuned")])
    tuned = load_checkpoint(tmp_path / "tuned" / "checkpoint_00000001.pt").config
    assert (tuned.model.image_size, tuned.model.video_timesteps, tuned.model.model_channels) == (32, 8, 32)
    assert tuned.train.init == str(init)
    capsys.readouterr()
    content = [*flags, "--generator", "content", "--data", str(world), "--out", str(tmp_path / "none")]
    assert "is a motion generator, and a content generator is needed" in error_of(train_main, content, capsys)
    assert not (tmp_path / "none").exists()


def test_the_checkpoint_stores_the_ablation_settings(world, tmp_path):
    network = "--norm timestep --no-encoder --previous-frame --flow-range none".split()
    train_main(tiny_run(world, tmp_path / "run", *network, *"--p2-gamma 0 --prediction eps --loss mse".split()))
    config = load_checkpoint(tmp_path / "run" / "checkpoint_00000001.pt").config
    assert (config.model.norm, config.model.flow_range) == ("timestep", "none")
    assert (config.model.use_encoder, config.model.use_previous) == (False, True)
    assert (config.diffusion.p2_gamma, config.diffusion.prediction, config.diffusion.loss) == (0.0, "eps", "mse")


def test_resuming_refuses_another_spynet_file(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run"))
    path = tmp_path / "run" / "checkpoint_00000001.pt"
    capsys.readouterr()
    message = error_of(train_main, ["--resume", str(path), "--spynet", "other.pth"], capsys)
    assert "--spynet other.pth is read when a run begins" in message


def test_a_finished_run_has_nothing_left_to_do(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run"))
    train_main(tiny_run(world, tmp_path / "run", "--resume", "auto"))
    assert "nothing left to do: the run is at step 1, and --total-iters is 1" in capsys.readouterr().out


def test_ctrl_c_prints_one_line_and_exits_with_130(capsys):
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_steps_are_counted_from_start_iters(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run", "--start-iters", "6", "--total-iters", "7"))
    printed = capsys.readouterr().out
    assert "steps 6 to 7" in printed
    assert "optimizer" not in printed
    assert latest_checkpoint(tmp_path / "run").name == "checkpoint_00000007.pt"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data nowhere", "generate synthetic data with `python scripts/make_synthetic_dataset.py --out nowhere`"),
        ("--data {empty}", "no videos and no folders of frames in {empty}: give the folder that contains them"),
        ("--num-frames 64", "the longest has 16"),
        ("--resolution 33", "--resolution 33: frames of 33x33"),
        ("-b 0", "error: -b 0: give a number from 1 to 1000000"),
        ("-p 0", "error: -p 0: give 1 or more"),
        ("--test-split val", "error: --test-split val: "),
        ("--resume nowhere.pt", "no such file: nowhere.pt"),
        ("--resume {text}", "text.pt"),
        ("--spynet {text}", "text.pt"),
        ("--batch-size 5 --accum-steps 2", "--batch-size 5 does not divide"),
        ("--preset huge", "invalid choice: 'huge'"),
        ("--init {text}", "text.pt"),
        ("--gpu -1", "--gpu -1"),
        ("--start-iters -2", "--start-iters -2"),
        (f"--start-iters {10**20}", f"--start-iters {10**20}: give a number from 0 to 1000000000"),
        ("--world-size 2", "--world-size and --rank count nodes"),
        ("--resume {empty}", "is a folder"),
        ("--out {text}/run", "text.pt is a file, not a folder"),
        ("--world-size 2 --rank 5 --multiprocessing-distributed", "--rank 5"),
    ],
)
def test_a_mistake_prints_one_line_and_writes_nothing(world, tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no weights")
    words = flags.format(empty=tmp_path / "empty", text=tmp_path / "text.pt").split()
    message = message.format(empty=tmp_path / "empty")
    assert message in error_of(train_main, tiny_run(world, tmp_path / "run", *words), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "sampling needs a checkpoint"),
        ("--resume {text} --content {empty} --content-resume {text}", "give either first frames (--content) or a"),
        ("--resume {text} --content {empty}", "text.pt"),
        ("--resume auto --content {empty}", "--resume auto: there is no checkpoint in checkpoints"),
        ("--resume {empty} --content {empty}", "is a folder without an undamaged checkpoint"),
        ("--resume auto --content {empty}", "the folder of runs without --out; give --resume the --out of"),
        ("--resume {text} --content {text} --out {text}", "text.pt is a file, not a folder"),
        ("--resume {text} --content nowhere", "error: no such file or folder: nowhere (--content)"),
        ("--resume {text} --content-resume no.pt", "error: no such file or folder: no.pt (--content-resume)"),
        ("--resume {text} --content {empty} --steps 0", "error: --steps '0': give a number of steps"),
        ("--resume {text} --content {empty} --gpu -1", "--gpu -1"),
        ("--resume {text} --content {empty} -ns 0", "error: -ns 0: give a number from 1"),
        ("--resume {text} --content {empty} --psi 2", "--psi 2.0: give a number from 0 to 1"),
    ],
)
def test_a_mistake_in_sampling_prints_one_line_and_writes_nothing(tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no weights")
    words = flags.format(empty=tmp_path / "empty", text=tmp_path / "text.pt").split()
    assert message in error_of(sample_main, ["--out", str(tmp_path / "videos"), *words], capsys)
    assert not (tmp_path / "videos").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--content-frames all", "--content-frames has no effect: it is for --generator content"),
        ("--generator content --num-frames 8", "--num-frames has no effect: --generator content"),
        ("--generator content --frame-stride 2", "--frame-stride has no effect: --generator content"),
        ("--no-constant", "--no-constant has no effect: it is for --generator content"),
        ("--generator content --norm timestep", "--norm has no effect: --generator content"),
        ("--generator content --no-encoder", "--no-encoder has no effect: --generator content"),
        ("--preset tiny --p2-gamma 0.5", "--p2-gamma has no effect: P2 weighting is for --prediction eps"),
        ("--loss mse --penalty-eps 1", "--penalty-eps has no effect: it is for --loss charbonnier"),
        ("--flow-range none --spynet FILE", "--spynet has no effect: --flow-range none runs no SPyNet"),
        ("--flow-range none --condition-noise 1", "--condition-noise has no effect: --flow-range none"),
        ("--train-flow", "--train-flow has no effect: SPyNet is always trained without --spynet and --init"),
        ("--video-timesteps 16", "--video-timesteps has no effect: it describes the file of --resume or --init"),
        ("--resume auto --video-timesteps 16", "--video-timesteps has no effect"),
    ],
)
def test_a_training_flag_without_effect_is_refused(tmp_path, flags, message):
    options = parse_flags([*flags.split(), "--out", str(tmp_path / "run")])
    with pytest.raises(ValueError, match=message):
        train_config(options)


@pytest.mark.parametrize(
    "flags",
    [
        "--generator content --content-frames all",
        "--preset tiny --prediction eps --p2-gamma 0.5",
        "--preset world --loss charbonnier --penalty-eps 1",
        "--preset world --flow-range none",
        "--preset world --generator content",
        "--spynet FILE --train-flow",
        "--warmup-iters 9",
    ],
)
def test_a_value_of_a_preset_without_effect_is_accepted(tmp_path, flags):
    train_config(parse_flags([*flags.split(), "--out", str(tmp_path / "run")]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--content DIR --content-steps 9",
            "--content-steps has no effect: it is for first frames of a --content-resume",
        ),
        ("--content-resume FILE --split val", "--split has no effect: it is for first frames of a --content"),
        ("--content DIR --psi 0 --start-noise frame", "--start-noise has no effect: with --psi 0"),
        ("--content DIR --format npy --fps 8", "--fps has no effect: --format npy stores no frame rate"),
        ("--content DIR --sampler ddpm --eta 1", "--eta 1.0: only --sampler ddim uses it"),
    ],
)
def test_a_sampling_flag_without_effect_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        sample_config(parse_flags(["--test", "--resume", "FILE", *flags.split()]))


def test_the_frame_rate_of_a_grid_or_a_report_has_an_effect():
    for flag in ("--grid 1x1", "--report"):
        words = f"--test --resume FILE --content DIR --format npy --fps 8 {flag}".split()
        assert sample_config(parse_flags(words)).fps == 8


def test_flags_without_effect_on_a_models_videos_are_reported(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run", "--flow-range", "none", "--deterministic"))
    assert "--deterministic has no effect on a CPU" in capsys.readouterr().out
    flags = f"--resume {tmp_path / 'run' / 'checkpoint_00000001.pt'} --content {world} --out {tmp_path / 'videos'}"
    less = "-ns 1 --num-frames 3 --steps 1 --anchor-every 2 --condition-noise 0.1 --precision tf32 --resolution 16"
    sample_main([*flags.split(), *less.split()])
    printed = capsys.readouterr().out
    assert "--anchor-every 2 has no effect on videos of 3 frames" in printed
    assert "--condition-noise has no effect: this model was trained with --flow-range none" in printed
    assert "--resolution" not in printed
    assert "--precision tf32 has no effect on a CPU" in printed


@pytest.mark.parametrize(("version", "printed"), [("2.14.1+cu130", True), ("2.15.0", False)])
def test_a_pytorch_without_group_norms_for_channels_last_memory_on_gpus_is_reported(
    monkeypatch, capsys, version, printed
):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    cli._report_device(torch.device("cuda"), "bf16")
    assert ("2.15 or newer does not" in capsys.readouterr().out) == printed
    cli._report_device(torch.device("cpu"), "bf16")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-dir1 nowhere -dir2 {world}", "no such folder: nowhere"),
        ("-dir1 {world} -dir2 {world} -n 99", "99"),
        ("-dir1 {world} -dir2 {world} -n 16 -ns 13", "13"),
        ("-dir1 {world} -dir2 {world} -n 16 -i3d nowhere.pt", "nowhere.pt"),
        ("-dir1 {world} -dir2 {world} -n 16 -i3d {text}", "text.pt"),
    ],
)
def test_a_mistake_in_an_evaluation_prints_one_line(world, tmp_path, capsys, flags, message):
    (tmp_path / "text.pt").write_text("no detector")
    words = flags.format(world=world, text=tmp_path / "text.pt").split()
    with pytest.raises(SystemExit) as exit_info:
        evaluate_fvd_main(words)
    assert exit_info.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("script", ["diffusion_ddp_accum_constant_cu.py", "evaluate_FVD.py", "scripts/evaluate_FVD.py"])
def test_scripts_only_call_the_package(script):
    text = (ROOT / script).read_text()
    assert len(text.splitlines()) <= 25
    assert subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_original_codes_command_takes_a_paper_size_step_without_a_gpu(tmp_path):
    command = (
        "diffusion_ddp_accum_constant_cu.py --multiprocessing-distributed --world-size 1 --rank 0 "
        "--batch-size 2 --workers 2 --total-iters 1"
    ).split()
    arguments = {"cwd": tmp_path, "capture_output": True, "text": True}
    without = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], **arguments)
    assert without.returncode == 2
    assert "make_synthetic_dataset.py --out data/CLEVRER" in without.stderr
    write_dataset(tmp_path / "data" / "CLEVRER", 2, num_frames=128, resolution=64, progress=False)
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], **arguments)
    assert done.returncode == 0, done.stderr
    assert "M parameters on cpu in fp32; a step is 1 x 1 x 2 samples" in done.stdout
    assert (tmp_path / "checkpoints" / "checkpoint_00000001.pt").is_file()


def under_torchrun(*flags: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [ROOT / "diffusion_ddp_accum_constant_cu.py", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_under_torchrun_train_and_sample_like_one(world, tmp_path):
    for name in ("one", "two"):
        flags = tiny_run(world, tmp_path / name, "--total-iters", "3", "--penalty-eps", "1e-2")
        (under_torchrun(*flags) if name == "two" else train_main(flags))
    one, two = (load_checkpoint(tmp_path / name / "checkpoint_00000003.pt").ema_state_dict for name in ("one", "two"))
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-3, name

    checkpoint = tmp_path / "one" / "checkpoint_00000003.pt"
    for name in ("one", "two"):
        out = tmp_path / "videos" / name
        flags = f"--test --resume {checkpoint} --content {world} --out {out} -b 4 --num-frames 3 --steps 2".split()
        (under_torchrun(*flags) if name == "two" else train_main(flags))
    names = sorted(p.name for p in (tmp_path / "videos" / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "videos" / "two").iterdir())
    assert len(names) == 2 * 12
    for name in names[1::2]:
        a, b = (read_video(tmp_path / "videos" / which / name).astype(int) for which in ("one", "two"))
        assert abs(a - b).max() <= 8
