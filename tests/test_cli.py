"""Claims about the command line: the original's flags, one-line errors, and what its scripts do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidm.checkpoint import latest_checkpoint, load_checkpoint
from vidm.cli import train_config, train_main, train_parser
from vidm.cli_evaluate import evaluate_fvd_main, evaluate_parser
from vidm.config import Config
from vidm.runtime import exit_on_user_error
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
FLAGS = """
--accum-steps --anchor-every --batch-size --checkpoint-activations --compile --condition-noise --content
--content-frames --content-resume --content-steps --data --dist-backend --dist-url --dry-run --ema-decay --eta
--eval-freq --flow-range --format --fps --frame-stride --generator --gpu --grid --held-out --help --init --keep
--layout --loss --lr --lr-schedule --max-bad-fraction --max-bad-steps --multiprocessing-distributed --no-encoder
--norm --num-frames --num-samples --out --p2-gamma --penalty-eps --precision --prediction --preset --print-freq --psi
--rank --report --resolution --resume --sampler --save-freq --seed --split --spynet --start-iters --start-noise
--steps --test --test-freq --test-split --timeout --total-iters --train-flow --video-timesteps --warmup-iters
--workers --world-size
""".split()


def tiny_run(world: Path, out: Path, *flags: str) -> list[str]:
    common = "--preset tiny --resolution 16 --batch-size 4 --workers 0 --total-iters 1 --test-freq 0".split()
    return [*common, "--data", str(world), "--out", str(out), *flags]


def error_of(main, argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line that a failing command leaves on stderr; its exit code is 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("usage", " "))]
    assert len(lines) == 1
    return lines[0]


def test_the_flags_are_frozen_and_each_has_help():
    actions = train_parser()._actions
    assert sorted(flag for a in actions for flag in a.option_strings if flag.startswith("--")) == sorted(FLAGS)
    assert all(action.help for action in actions)


def test_the_originals_defaults_hold():
    options = train_parser().parse_args([])
    config = train_config(options)[0]
    known = vars(options) | {k: v for section in config.to_dict().values() for k, v in section.items()}
    assert {name: known[name] for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS


def test_the_originals_commands_parse():
    line = "--multiprocessing-distributed --world-size 1 --rank 0 --batch-size 48 --workers 24 --gpu 0 --seed 1"
    options = train_parser().parse_args(line.split())
    assert options.multiprocessing_distributed
    assert train_config(options)[0].train.batch_size == 48
    line = "-dir1 A -dir2 B -b 2 -r 256 -n 128 -ns 2038 -i3d ./i3d_torchscript.pt"
    options = evaluate_parser().parse_args(line.split())
    assert (options.dir1, options.batch, options.nsamples) == ("A", 2, 2038)
    options = evaluate_parser().parse_args(["--dir1", "A", "--dir2", "B"])
    assert (options.batch, options.resolution, options.nframes, options.i3d) == (32, None, 128, None)


def test_flags_win_over_the_preset_and_the_preset_over_the_defaults():
    config = train_config(train_parser().parse_args(["--preset", "tiny", "--lr", "0.5"]))[0]
    assert config.train.lr == 0.5
    assert config.model == Config.from_preset("tiny").model


def test_training_resumes_from_the_newest_and_samples(world, tmp_path, capsys):
    out = tmp_path / "run"
    train_main(tiny_run(world, out, "--resume", "auto"))
    train_main(tiny_run(world, out, "--resume", "auto", "--total-iters", "3"))
    said = capsys.readouterr().out
    assert "no checkpoint in" in said
    assert f"going on from {out / 'checkpoint_00000001.pt'}" in said
    newest = latest_checkpoint(out)
    assert newest == out / "checkpoint_00000003.pt"

    videos = tmp_path / "videos"
    flags = f"--test --resume {newest} --content {world} --out {videos} -ns 3 --num-frames 4 --steps 2".split()
    train_main(flags)
    assert sorted(p.name for p in videos.glob("*.mp4")) == [f"video_{i:05d}.mp4" for i in range(3)]
    assert read_video(videos / "video_00002.mp4").shape == (4, 16, 16, 3)

    evaluate_fvd_main(["-dir1", str(world), "-dir2", str(videos), "-n", "4", "-r", "32", "-b", "2"])
    said = capsys.readouterr().out
    assert "random-feature Frechet distance: not an FVD, not comparable with published numbers" in said
    assert "12 against 3 videos" in said


def test_resuming_takes_the_checkpoints_settings_and_refuses_another_network(world, tmp_path, capsys):
    out = tmp_path / "run"
    train_main(tiny_run(world, out, "--lr", "0.25"))
    path = out / "checkpoint_00000001.pt"
    checkpoint = load_checkpoint(path)
    capsys.readouterr()
    options = train_parser().parse_args(["--resume", str(path), "--total-iters", "9"])
    assert train_config(options)[0] == checkpoint.config.replaced({"total_iters": 9})
    for flags, message in (
        (["--resolution", "32"], "image_size is 16 there and 32 here"),
        (["--preset", "paper128"], "is of another configuration"),
        (["--loss", "mse"], "loss is charbonnier there and mse here"),
    ):
        assert message in error_of(train_main, ["--resume", str(path), *flags], capsys)


def test_content_then_motion_make_videos_from_nothing(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "motion"))
    train_main(tiny_run(world, tmp_path / "content", "--generator", "content"))
    motion, content = (tmp_path / name / "checkpoint_00000001.pt" for name in ("motion", "content"))
    videos = tmp_path / "videos"
    quick = "--num-frames 3 --sampler ddim --steps 2 --psi 0.5 --start-noise video".split()
    train_main(f"--test --resume {motion} --content-resume {content} -ns 3 --out {videos}".split() + quick)
    assert sorted(p.name for p in videos.glob("*.mp4")) == [f"video_{i:05d}.mp4" for i in range(3)]
    capsys.readouterr()
    wrong = f"--test --resume {content} --content {world} --out {tmp_path / 'none'}".split()
    assert "is a content generator, and a motion generator is needed" in error_of(train_main, wrong, capsys)
    swapped = f"--test --resume {motion} --content-resume {motion} --out {tmp_path / 'none'}".split()
    assert "is a motion generator, and a content generator is needed" in error_of(train_main, swapped, capsys)
    outside = f"--test --resume {motion} --content {world} --psi 1.5 --out {tmp_path / 'none'}".split()
    assert "psi 1.5 is outside [0, 1]" in error_of(train_main, outside, capsys)
    beyond = f"--test --resume {motion} --content {world} --num-frames 17 --out {tmp_path / 'none'}".split()
    assert "17 frames asked of a model trained on 16" in error_of(train_main, beyond, capsys)
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


def test_switches_travel_in_the_checkpoint(world, tmp_path):
    switches = "--norm timestep --no-encoder --flow-range none --p2-gamma 0 --prediction eps --loss mse".split()
    train_main(tiny_run(world, tmp_path / "run", *switches))
    config = load_checkpoint(tmp_path / "run" / "checkpoint_00000001.pt").config
    assert (config.model.norm, config.model.use_encoder, config.model.flow_range) == ("timestep", False, "none")
    assert (config.diffusion.p2_gamma, config.diffusion.prediction, config.diffusion.loss) == (0.0, "eps", "mse")


def test_what_a_run_began_with_is_not_read_again(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run"))
    path = tmp_path / "run" / "checkpoint_00000001.pt"
    capsys.readouterr()
    message = error_of(train_main, ["--resume", str(path), "--spynet", "other.pth"], capsys)
    assert "--spynet other.pth is read when a run begins" in message


def test_a_finished_run_has_nothing_left_to_do(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run"))
    train_main(tiny_run(world, tmp_path / "run", "--resume", "auto"))
    assert "nothing left to do: step 1 of 1" in capsys.readouterr().out


def test_an_interruption_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_start_iters_counts_from_there(world, tmp_path, capsys):
    train_main(tiny_run(world, tmp_path / "run", "--start-iters", "6", "--total-iters", "7"))
    assert "steps 6 to 7" in capsys.readouterr().out
    assert latest_checkpoint(tmp_path / "run").name == "checkpoint_00000007.pt"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data nowhere", "generate synthetic data with `python scripts/make_synthetic_dataset.py --out nowhere`"),
        ("--data {empty}", "no videos"),
        ("--num-frames 64", "the longest has 16"),
        ("--resolution 33", "33x33"),
        ("--resume nowhere.pt", "no such file: nowhere.pt"),
        ("--resume {text}", "text.pt"),
        ("--spynet {text}", "text.pt"),
        ("--batch-size 5 --accum-steps 2", "--batch-size 5 does not divide"),
        ("--preset huge", "invalid choice: 'huge'"),
        ("--test", "--test needs a checkpoint"),
        ("--test --resume {text} --content {empty} --content-resume {text}", "--test needs a checkpoint"),
        ("--init {text}", "text.pt"),
        ("--test --resume {text} --content {empty}", "text.pt"),
        ("--gpu -1", "--gpu -1"),
        ("--start-iters -2", "--start-iters -2"),
        ("--world-size 2", "--world-size and --rank count nodes"),
        ("--test --resume auto --content {empty}", "--test needs a checkpoint"),
        ("--resume {empty}", "is a folder"),
        ("--world-size 2 --rank 5 --multiprocessing-distributed", "--rank 5"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(world, tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no weights")
    words = flags.format(empty=tmp_path / "empty", text=tmp_path / "text.pt").split()
    assert message in error_of(train_main, tiny_run(world, tmp_path / "run", *words), capsys)
    assert not (tmp_path / "run").exists()


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
def test_an_evaluation_that_cannot_be_is_one_line(world, tmp_path, capsys, flags, message):
    (tmp_path / "text.pt").write_text("no detector")
    words = flags.format(world=world, text=tmp_path / "text.pt").split()
    with pytest.raises(SystemExit) as exit_info:
        evaluate_fvd_main(words)
    assert exit_info.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("script", ["diffusion_ddp_accum_constant_cu.py", "evaluate_FVD.py", "scripts/evaluate_FVD.py"])
def test_scripts_are_doors_and_no_more(script):
    text = (ROOT / script).read_text()
    assert len(text.splitlines()) <= 25
    assert subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the claim is about a machine without a GPU")
def test_the_originals_command_takes_a_paper_size_step_without_a_gpu(tmp_path):
    command = (
        "diffusion_ddp_accum_constant_cu.py --multiprocessing-distributed --world-size 1 --rank 0 "
        "--batch-size 2 --workers 2 --total-iters 1"
    ).split()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    arguments = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    without = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], **arguments)
    assert without.returncode == 2
    assert "make_synthetic_dataset.py --out data/CLEVRER" in without.stderr
    write_dataset(tmp_path / "data" / "CLEVRER", 2, num_frames=128, resolution=64, progress=False)
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], **arguments)
    assert done.returncode == 0, done.stderr
    assert "1 process over gloo, the first on cpu" in done.stdout
    assert "M parameters on cpu; a step is 1 x 1 x 2 samples" in done.stdout
    assert (tmp_path / "checkpoints" / "checkpoint_00000001.pt").is_file()


def under_torchrun(*flags: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [ROOT / "diffusion_ddp_accum_constant_cu.py", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_under_torchrun_train_and_sample_what_one_does(world, tmp_path):
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
