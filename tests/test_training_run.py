"""Tests of the training loop: held-out videos, logs, dry runs, resuming, and equal splits of a step."""

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule
from test_preemption import run_in_two

import vidm.trainer
from vidm import training_run
from vidm.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from vidm.config import Config
from vidm.distributed import Rendezvous, gather_rows, is_main, rank
from vidm.launch import launch
from vidm.layouts import index_clips
from vidm.randomness import draw_condition_noise
from vidm.resume import newest_that_verifies
from vidm.runtime import explain_out_of_memory, more_micro_batches
from vidm.trainer import Trainer, compile_network
from vidm.training_data import TrainingData, hold_out
from vidm.training_run import dry_run, fit
from vidm.validation import Validator, film_strip
from vidm.video_io import read_video
from vidm.world import write_dataset

CPU = torch.device("cpu")


def rows_of(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.train.out) / "stats.jsonl").read_text().splitlines()]


# Held-out videos


@pytest.mark.parametrize(
    ("total", "count", "held"), [(100, 16, 10), (1000, 16, 16), (10, 16, 1), (30, 0, 0), (9, 4, 0)]
)
def test_held_out_videos_are_separate_from_the_others_and_evenly_spaced(world, total, count, held):
    found = index_clips(world)
    many = type(found)(
        root=found.root,
        paths=[Path(f"{i:04d}.mp4") for i in range(total)],
        num_frames=[16] * total,
        skipped=[],
        found="",
    )
    rest, kept = hold_out(many, count)
    if held:
        assert len(kept.paths) == held
        assert sorted(rest.paths + kept.paths) == many.paths
        places = [int(path.stem) for path in kept.paths]
        assert max(np.diff([-1, *places, total])) <= total / held + 1
    else:
        assert rest.paths == many.paths
        assert set(kept.paths) <= set(many.paths)


def test_a_split_may_be_held_out(tiny, tmp_path):
    for split, seed in (("train", 1), ("validation", 2)):
        write_dataset(tmp_path / "data" / split, num_videos=3, num_frames=16, resolution=16, seed=seed, progress=False)
    values = {"data": str(tmp_path / "data"), "split": "train", "test_split": "validation", "held_out": 2}
    data = TrainingData(tiny.replaced(values))
    assert {path.parts[-3] for path in data.index.paths} == {"train"} or len(data.index.paths) == 3
    assert len(data.held_out.paths) == 2
    assert all("validation" in str(path) for path in data.held_out.paths)
    with pytest.raises(ValueError, match=r"^held_out 0: test_split needs 1 or more"):
        Trainer(tiny.replaced({**values, "held_out": 0}), CPU)


def test_the_held_out_loss_depends_only_on_the_weights(tiny):
    trainer = Trainer(tiny, CPU)
    samples = trainer.data.samples(trainer.data.held_out, seed=0, flip=False)
    validator = Validator(tiny, trainer.data.held_out, samples, CPU)
    first = validator.loss(trainer.model, batch_size=8)
    assert validator.loss(trainer.model, batch_size=8) == first
    assert validator.loss(trainer.model, batch_size=5) == pytest.approx(first, rel=1e-5)
    fill_by_rule(trainer.model)
    assert validator.loss(trainer.model, batch_size=8) != first


def test_a_run_logs_held_out_losses_previews_and_distances(tmp_path, tiny):
    write_dataset(tmp_path / "data", num_videos=20, num_frames=16, resolution=16, seed=3, progress=False)
    config = tiny.replaced({"data": str(tmp_path / "data"), "test_freq": 2, "eval_freq": 4})
    fit(Trainer(config, CPU))
    rows = rows_of(config)
    assert [row["step"] for row in rows if "held_out_loss" in row] == [2, 4]
    assert [row["step"] for row in rows if "distance" in row] == [4]
    assert next(row["distance"] for row in rows if "distance" in row) > 0
    assert all(row["images_per_s"] > 0 and row["lr"] == 1e-3 for row in rows if "loss" in row)
    preview = read_video(Path(config.train.out) / "preview" / "00000004.gif")
    assert preview.shape == (16, 32, 32, 3)  # two held-out videos: generated above real, 16 x 16 each


def test_validation_does_not_change_the_weights(tiny, tmp_path):
    states = []
    for values in ({}, {"test_freq": 1, "eval_freq": 2}):
        config = tiny.replaced({**values, "held_out": 0, "out": str(tmp_path / f"run{len(states)}")})
        fit(Trainer(config, CPU))
        states.append(load_checkpoint(list_checkpoints(config.train.out)[-1]))
    one, two = states
    assert all(torch.equal(two.state_dict[name], tensor) for name, tensor in one.state_dict.items())
    assert all(torch.equal(two.ema_state_dict[name], tensor) for name, tensor in one.ema_state_dict.items())


def test_a_distance_over_too_few_videos_is_refused_before_the_run(tiny):
    with pytest.raises(ValueError, match=r"^eval_freq: 1 held-out video\(s\) are too few for a distance"):
        Trainer(tiny.replaced({"eval_freq": 1}), CPU)


def test_distances_need_a_motion_generator(tiny):
    with pytest.raises(ValueError, match=r"^eval_freq measures videos: it needs generator motion"):
        Trainer(tiny.replaced({"generator": "content", "eval_freq": 1}), CPU)


def test_a_film_strip_contains_the_first_and_last_frames_of_the_video():
    frames = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1).repeat(3, axis=3)
    strip = film_strip(frames)
    assert strip.shape == (8, 1, 3)
    assert (strip[0, 0, 0], strip[-1, 0, 0]) == (0, 19)
    assert film_strip(frames[:1]).shape == (1, 1, 3)


# Dry runs and memory


def test_a_dry_run_prints_sizes_and_memory_and_writes_nothing(tiny, capsys):
    dry_run(Trainer(tiny, CPU))
    printed = capsys.readouterr().out
    millions = sum(p.numel() for p in Trainer(tiny, CPU).model.spynet.parameters()) / 1e6
    assert f"  spynet: {millions:.2f} M parameters" in printed
    assert "memory: weights 0.01 GiB, gradients 0.01 GiB, optimizer 0.02 GiB, averaged weights 0.01 GiB" in printed
    assert "peak of a step with micro-batches of 4:" in printed
    assert not Path(tiny.train.out).exists()


def test_a_run_that_is_interrupted_before_its_first_step_names_no_folder_and_leaves_none(tiny, capsys, monkeypatch):
    trainer = Trainer(tiny, CPU)

    def interrupted():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(trainer, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert tiny.train.out not in capsys.readouterr().out
    assert not Path(tiny.train.out).exists()


def test_out_of_memory_advice_names_a_setting():
    assert [more_micro_batches(8, n) for n in (1, 2, 3, 4, 8)] == [2, 4, 4, 8, None]
    with (
        pytest.raises(ValueError, match="out of memory on the CPU: micro-batches of 8 do not fit; try --accum-steps 2"),
        explain_out_of_memory("micro-batches of 8", "try --accum-steps 2"),
    ):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), explain_out_of_memory("", ""):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_step_that_runs_out_of_memory_names_accum_steps_to_try(tiny, monkeypatch):
    trainer = Trainer(tiny, CPU)
    monkeypatch.setattr(trainer, "accumulate", lambda batches, step: torch.empty(2**60))
    message = r"out of memory on the CPU: micro-batches of 4 do not fit; try accum_steps 2, checkpoint_activations"
    with pytest.raises(ValueError, match=message):
        fit(trainer)


# Resuming


def test_a_changed_number_of_videos_is_printed_on_resuming(tiny, tmp_path, capsys):
    fit(Trainer(tiny, CPU))
    write_dataset(tmp_path / "more", num_videos=5, num_frames=16, resolution=16, seed=3, progress=False)
    capsys.readouterr()
    config = tiny.replaced({"data": str(tmp_path / "more"), "total_iters": 5})
    fit(Trainer(config, CPU, newest_that_verifies(tiny.train.out)))
    assert "the checkpoint was trained on 11 videos: the order of samples changes now" in capsys.readouterr().out


def test_a_checkpoint_has_the_whole_state_of_a_run(tiny):
    fit(Trainer(tiny, CPU))
    checkpoint = load_checkpoint(list_checkpoints(tiny.train.out)[-1])
    assert checkpoint.progress is not None
    assert (checkpoint.progress.samples_seen, checkpoint.progress.ema_updates) == (16, 4)
    assert checkpoint.progress.num_videos == 11
    assert checkpoint.versions["torch"] == torch.__version__
    assert checkpoint.config == tiny.replaced({"train_flow": True})
    assert checkpoint.optimizer["state"]


# A step is the same however it is split


def losses_and_weights(config: Config, steps: int) -> tuple[list[float], torch.Tensor]:
    trainer = Trainer(config, CPU)
    fill_by_rule(trainer.model)
    batches, found = trainer.batches(), []
    for _ in range(steps):
        losses = trainer.train_step(batches)
        assert losses
        found.append(losses["loss"])
    means = [gather_rows(loss).mean().item() for loss in found]
    return means, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def save_losses(device: torch.device, config: Config, steps: int, path: Path) -> None:
    found = losses_and_weights(config, steps)
    if is_main():
        torch.save(found, path)


def one_of_two(node_rank: int, worker: Callable[..., None], arguments: tuple[object, ...], store: Path) -> None:
    torch.set_num_threads(1)
    nodes = {"num_nodes": 2, "node_rank": node_rank, "rendezvous": Rendezvous(f"file://{store}")}
    launch(worker, arguments, multiprocessing=True, **nodes)


@pytest.mark.slow
def test_twenty_steps_are_the_same_on_one_process_on_two_and_in_micro_batches(tiny, tmp_path):
    config = tiny.replaced({"batch_size": 8, "total_iters": 20, "lr": 1e-4, "penalty_eps": 1e-2})
    expected, _ = losses_and_weights(config, 20)
    in_micro_batches, _ = losses_and_weights(config.replaced({"accum_steps": 4}), 20)
    arguments = (save_losses, (config, 20, tmp_path / "found.pt"), tmp_path / "store")
    run_in_two(one_of_two, arguments)
    on_two, _ = torch.load(tmp_path / "found.pt", weights_only=True)
    assert in_micro_batches == pytest.approx(expected, rel=1e-4)
    assert on_two == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 20


def in_the_other_only(device: torch.device, config: Config, found: Path) -> None:
    """A step in which process 1 is asked to stop, and one in which its loss, but not its gradient, is infinite."""
    trainer = Trainer(config, device)
    batches, losses = trainer.batches(), trainer.losses
    updated = [trainer.train_step(batches, lambda: not is_main()) is not None]
    stopping = [trainer.stopping]
    if not is_main():
        infinite = torch.tensor(torch.inf)
        trainer.losses = lambda *place: {name: loss + infinite for name, loss in losses(*place).items()}
    updated += [trainer.train_step(batches) is not None]
    stopping += [trainer.stopping]
    found.with_name(f"found{rank()}").write_text(f"{updated} {stopping} {trainer.progress.bad_steps}")


def test_two_processes_stop_together_and_leave_out_the_same_steps(tiny, tmp_path):
    arguments = (in_the_other_only, (tiny, tmp_path / "found"), tmp_path / "store")
    run_in_two(one_of_two, arguments)
    for number in range(2):
        assert (tmp_path / f"found{number}").read_text() == "[True, False] [True, False] 1"


def test_flags_are_exchanged_before_a_step_waits_for_its_gradient(tiny, monkeypatch):
    trainer = Trainer(tiny, CPU)
    events, item, accumulate = [], torch.Tensor.item, trainer.accumulate

    def accumulated(*arguments):
        losses = accumulate(*arguments)
        events.clear()
        return losses

    monkeypatch.setattr(trainer, "accumulate", accumulated)
    monkeypatch.setattr("vidm.trainer.any_process", lambda flag: events.append("flags") or flag)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: events.append("wait") or item(tensor))
    assert trainer.train_step(trainer.batches())
    assert events == ["flags", "wait"]


# Workers


@pytest.mark.parametrize(("workers", "processes", "each"), [(32, 64, 1), (0, 64, 0), (8, 3, 2), (8, 1, 3)])
def test_each_process_has_a_worker_unless_there_are_none(tiny, monkeypatch, workers, processes, each):
    given = []
    monkeypatch.setattr("vidm.training_data.world_size", lambda: processes)
    monkeypatch.setattr("vidm.training_data.load_batches", lambda *arguments: given.append(arguments[2]))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    TrainingData(tiny.replaced({"workers": workers})).batches(0, pin_memory=False)
    assert given == [each]


# Conditioning noise


def test_condition_noise_affects_only_the_flow_and_zero_is_the_released_training(tiny):
    def loss(level: float, **values: object) -> float:
        trainer = Trainer(tiny.replaced({"condition_noise": level, **values}), CPU)
        fill_by_rule(trainer.model)
        return trainer.accumulate(trainer.batches(), 0)["loss"].mean().item()

    assert loss(0.5) != loss(0.0)
    assert loss(0.5) == loss(0.5)
    assert loss(0.5, flow_range="none") == loss(0.0, flow_range="none")
    assert loss(0.5, accum_steps=4) == pytest.approx(loss(0.5), rel=1e-5)


def test_condition_noise_levels_are_uniform_up_to_the_given_level():
    frame = torch.zeros(400, 3, 16, 16)
    levels = draw_condition_noise(0, 3, range(400), frame, level=0.2).flatten(1).std(dim=1).sort().values
    expected = 0.2 * (torch.arange(400) + 0.5) / 400
    assert (levels - expected).abs().max() < 0.02
    half = draw_condition_noise(0, 3, range(200, 400), frame[:200], level=0.2)
    assert torch.equal(half, draw_condition_noise(0, 3, range(400), frame, level=0.2)[200:])


# Writing checkpoints in the background, as on a GPU


class InBackground(training_run._Run):
    """A run whose snapshots are copies, as on a GPU, and whose checkpoints are written while it goes on."""

    def __init__(self, trainer: Trainer, *arguments) -> None:
        super().__init__(trainer, *arguments)
        self.saves_in_background = True
        snapshot = trainer.snapshot
        trainer.snapshot = lambda: copy.deepcopy(snapshot())  # type: ignore[method-assign]


def test_checkpoints_written_in_the_background_are_those_of_their_steps_one_at_a_time(tiny, tmp_path, monkeypatch):
    config = tiny.replaced({"total_iters": 7, "keep": 0})
    fit(Trainer(config, CPU))
    events: list[tuple[str, int, int]] = []
    trainer = Trainer(config.replaced({"out": str(tmp_path / "background")}), CPU)

    def save(path, state):
        events.append(("begin", state.step, trainer.step))
        time.sleep(2)
        save_checkpoint(path, state)
        events.append(("end", state.step, trainer.step))

    monkeypatch.setattr(vidm.trainer, "save_checkpoint", save)
    monkeypatch.setattr(training_run, "_Run", InBackground)
    fit(trainer)
    assert [event[:2] for event in events] == [(name, step) for step in (2, 4, 6, 7) for name in ("begin", "end")]
    assert events[1][2] > 2
    for path in list_checkpoints(config.train.out):
        one, other = load_checkpoint(path), load_checkpoint(tmp_path / "background" / path.name)
        for states in ((one.state_dict, other.state_dict), (one.ema_state_dict, other.ema_state_dict)):
            assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
        moments = (each.optimizer["state"][0]["exp_avg"] for each in (one, other))
        assert torch.equal(*moments)


@pytest.mark.parametrize("failing", [2, 4])
def test_a_checkpoint_that_cannot_be_written_in_the_background_is_reported(tiny, monkeypatch, capsys, failing):
    def save(path, state):
        if state.step == failing:
            raise OSError(f"{path} was not written")
        save_checkpoint(path, state)

    monkeypatch.setattr(vidm.trainer, "save_checkpoint", save)
    monkeypatch.setattr(training_run, "_Run", InBackground)
    if failing == tiny.train.total_iters:
        with pytest.raises(OSError, match=r"checkpoint_00000004\.pt was not written"):
            fit(Trainer(tiny, CPU))
    else:
        fit(Trainer(tiny, CPU))
        assert "checkpoint_00000002.pt was not written; the run continues" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tiny.train.out)] == [f"checkpoint_{6 - failing:08d}.pt"]


# Compilation, bfloat16 and GPUs


def counting_backend():
    """A list of the graphs that the compiler makes, and the backend that fills it and runs them as they are."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return graphs, backend


# torch.compile hides this warning of its own, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_previews_of_a_compiled_run_compile_nothing(tiny):
    compiled, backend = counting_backend()
    counts = []
    for test_freq in (0, 2):
        out = f"{tiny.train.out}-{test_freq}"
        trainer = Trainer(tiny.replaced({"test_freq": test_freq, "out": out}), CPU)
        torch.compiler.reset()
        compile_network(trainer.model, backend=backend)
        compiled.clear()
        fit(trainer)
        counts.append(len(compiled))
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_recomputed_norms_add_no_break_to_the_compiled_graph(tiny):
    graphs, backend = counting_backend()
    counts = []
    for what in ("none", "posgn", "full"):
        trainer = Trainer(tiny.replaced({"checkpoint_activations": what}), CPU)
        torch.compiler.reset()
        graphs.clear()
        compile_network(trainer.model, backend=backend)
        trainer.accumulate(trainer.batches(), 0)
        counts.append(len(graphs))
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_networks_give_the_same_losses_and_the_same_names(tiny):
    config = tiny.replaced({"total_iters": 3, "penalty_eps": 1e-2})
    expected, _ = losses_and_weights(config, 3)
    trainer = Trainer(config.replaced({"compile": True, "test_freq": 3}), CPU)
    names = list(trainer.model.state_dict())
    found, _ = losses_and_weights(config.replaced({"compile": True}), 3)
    assert found == pytest.approx(expected, rel=1e-4)
    fit(trainer)
    assert list(load_checkpoint(list_checkpoints(config.train.out)[-1]).state_dict) == names


@pytest.mark.slow
def test_bf16_with_recomputed_activations_reaches_the_loss_of_fp32(tiny, tmp_path):
    """The learning rate decreases to 0: at a constant one, rounding alone changes the last losses by 5 percent.

    In four pairs of runs, which differed by the processor's instructions or a change of 1e-6 in the first weights, the
    ratio of the losses was from 0.96 to 1.01.
    """
    last = {}
    tiny = tiny.replaced({"total_iters": 300, "save_freq": 300, "lr_schedule": "cosine"})
    for name, values in (("fp32", {}), ("bf16", {"precision": "bf16", "checkpoint_activations": "posgn"})):
        config = tiny.replaced({**values, "out": str(tmp_path / name)})
        fit(Trainer(config, CPU))
        last[name] = sum(row["loss"] for row in rows_of(config)[-100:]) / 100
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.08)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("values", [{}, {"compile": True}, {"precision": "bf16"}, {"checkpoint_activations": "posgn"}])
def test_on_a_gpu_micro_batches_have_the_gradient_of_one_big_batch(tiny, values):
    gpu, found = torch.device("cuda"), []
    for accum_steps in (1, 4):
        config = tiny.replaced({**values, "batch_size": 8, "accum_steps": accum_steps, "penalty_eps": 1e-2})
        trainer = Trainer(config, gpu)
        fill_by_rule(trainer.model)
        trainer.accumulate(trainer.batches(), 0)
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    one, four = found
    tolerance = 1e-2 if values.get("precision") == "bf16" else 1e-4
    assert (four - one).norm() <= tolerance * one.norm()


def test_the_global_random_generators_have_no_effect_once_a_run_has_begun(tiny, tmp_path):
    states = []
    for seed in (1, 2):
        config = tiny.replaced({"out": str(tmp_path / f"run{seed}")})
        trainer = Trainer(config, CPU)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        fit(trainer)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())


def test_a_dry_run_of_a_finished_run_has_nothing_to_do(tiny, capsys):
    dry_run(Trainer(tiny.replaced({"total_iters": 1}), CPU, start_step=1))
    assert "nothing left to do: the run is at step 1, and --total-iters is 1" in capsys.readouterr().out
