"""Class conditioning: folders are classes, which reach the networks, are dropped, and are guided in sampling."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule, small_content_arguments, small_model_arguments

from vidm.checkpoint import Checkpoint, build_model, latest_checkpoint, load_checkpoint, save_checkpoint
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.cli import parse_flags, sample_main, train_config
from vidm.config import Config
from vidm.diffusion import PREDICTIONS, GaussianDiffusion
from vidm.generator import Generator, load_generator
from vidm.model import ContentGenerator, MotionGenerator, relabelled
from vidm.randomness import drop_classes, keyed_normal
from vidm.sample_config import SampleConfig
from vidm.samplers import SAMPLERS, guided, with_classes
from vidm.sampling import sample_folder
from vidm.trainer import Trainer
from vidm.training_data import TrainingData
from vidm.training_run import fit
from vidm.unet import NORMS
from vidm.validation import Validator
from vidm.world import COLOURS, CollisionWorld, render_clip

CPU = torch.device("cpu")
NAMES = ("blue", "green", "red")
# One level and no flow: a network that is computed in milliseconds.
SMALL = {"image_size": 16, "channel_mult": (1,), "attention_resolutions": (), "flow_range": "none"}
QUICK = {"num_frames": 2, "sampler": "ddim", "steps": "2"}


def write_classes(root: Path, names: tuple[str, ...] = NAMES, videos: int = 2, num_frames: int = 16) -> Path:
    """Folders of videos of the embedded world, 16 x 16, in which all solids have the colour of the folder's name."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(videos):
            world = CollisionWorld(seed=3, index=1000 * i + k, num_frames=num_frames)
            world.solids = [solid._replace(albedo=COLOURS[name], metal=False) for solid in world.solids]
            np.save(root / name / f"{k:03d}.npy", render_clip(world, 16))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "data")


@pytest.fixture
def classes(tiny: Config, folder: Path) -> Config:
    return tiny.replaced({**SMALL, "data": str(folder), "classes": True, "save_freq": 2})


def saved(path: Path, **values) -> Path:
    """A checkpoint with weights by rule, in which the embeddings of classes are not zero."""
    config = Config.from_preset("tiny").replaced({**SMALL, **values})
    state = fill_by_rule(build_model(config)).state_dict()
    save_checkpoint(path, Checkpoint(1, config, state, state, {}))
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Generator:
    out = tmp_path_factory.mktemp("checkpoints")
    motion = saved(out / "motion.pt", class_names=NAMES)
    return load_generator(motion, saved(out / "content.pt", class_names=NAMES, generator="content"), device="cpu")


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def arguments(batch: int = 2) -> dict[str, torch.Tensor]:
    frames = {name: keyed_normal((i,), (batch, 3, 32, 32)) for i, name in enumerate(("x_t", "previous", "first"))}
    return {**frames, "t": torch.tensor([5, 900]), "frame_index": torch.tensor([1, 3])}


def make_motion(**values) -> MotionGenerator:
    torch.manual_seed(0)
    return fill_by_rule(MotionGenerator(**small_model_arguments(), **values))


def zero_embeddings(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("class_embedding"):
            torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("norm", list(NORMS))
@torch.no_grad()
def test_the_class_reaches_the_motion_generators_output_and_none_is_a_class_of_its_own(norm):
    model, inputs = make_motion(class_names=NAMES, norm=norm), arguments()
    outputs = [model(**inputs, class_index=torch.full((2,), number)) for number in range(4)]
    assert outputs[0].shape == (2, 6, 32, 32)
    assert all(not torch.allclose(outputs[i], outputs[j], atol=1e-4) for i in range(4) for j in range(i))
    assert torch.equal(model(**inputs), outputs[0])
    mixed = model(**inputs, class_index=torch.tensor([2, 3]))
    assert torch.allclose(mixed, torch.stack([outputs[2][0], outputs[3][1]]), atol=1e-4)


@torch.no_grad()
def test_the_class_reaches_the_content_generators_output():
    model = fill_by_rule(ContentGenerator(**small_content_arguments(), class_names=NAMES))
    x_t, t = arguments()["x_t"], torch.tensor([5, 900])
    outputs = [model(x_t, t, torch.full((2,), number)) for number in range(4)]
    assert all(not torch.allclose(outputs[i], outputs[j], atol=1e-4) for i in range(4) for j in range(i))
    assert torch.equal(model(x_t, t), outputs[0])


@pytest.mark.parametrize("kind", ["motion", "content"])
def test_a_new_network_with_classes_is_the_one_without_them(tiny, kind):
    states = []
    for names in ((), NAMES):
        torch.manual_seed(0)
        states.append(build_model(tiny.replaced({**SMALL, "generator": kind, "class_names": names})).state_dict())
    plain, conditional = states
    added = conditional.keys() - plain.keys()
    assert added
    assert all(name.endswith("class_embedding") and not conditional[name].any() for name in added)
    assert all(torch.equal(plain[name], conditional[name]) for name in plain)


@torch.no_grad()
def test_an_embedding_of_zero_leaves_the_output_as_it_is():
    conditional, inputs = zero_embeddings(make_motion(class_names=NAMES)), arguments()
    assert torch.equal(conditional(**inputs, class_index=torch.tensor([1, 2])), make_motion()(**inputs))


def test_classes_that_the_network_does_not_have_are_refused():
    for model, number in ((make_motion(), 0), (make_motion(class_names=NAMES), 4)):
        with pytest.raises(ValueError, match=r"the network has . classes"):
            model(**arguments(), class_index=torch.full((2,), number))


# Data


@pytest.mark.parametrize("kind", ["motion", "content"])
def test_a_sample_has_the_class_of_its_folder(classes, kind):
    data = TrainingData(classes.replaced({"generator": kind}))
    assert data.config.model.class_names == NAMES
    samples = data.samples(data.index, 0, True)
    for i, path in enumerate(data.index.paths):
        assert NAMES[samples[0, i]["class_index"] - 1] == path.parent.name


def test_a_video_that_cannot_be_read_is_replaced_together_with_its_class(classes, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    data = TrainingData(classes.replaced({"data": str(tmp_path / "data")}))
    last_of_blue = next(i for i, path in enumerate(data.index.paths) if path.parent.name == "green") - 1
    data.index.paths[last_of_blue].unlink()
    assert NAMES[data.samples(data.index, 0, True)[0, last_of_blue]["class_index"] - 1] == "green"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["blue/a.npy", "blue/b.npy"], "of one class, blue"),
        (["a.npy", "b.npy"], "a.npy is not in the folder of a class"),
        (["blue/a.npy", "b.npy"], "b.npy is not in the folder of a class"),
        (["video_00000-01000/a.npy", "video_01000-02000/b.npy"], "a.npy is not in the folder of a class; .* csv file"),
    ],
)
def test_data_without_a_folder_for_each_class_are_refused(classes, tmp_path, files, message):
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "data" / name, np.zeros((16, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=f"--classes: .*{message}"):
        TrainingData(classes.replaced({"data": str(tmp_path / "data")}))


def test_a_class_that_the_run_does_not_have_is_named(classes):
    with pytest.raises(ValueError, match="has the class green, which this run does not have: blue, red"):
        TrainingData(classes.replaced({"class_names": ("blue", "red")}))


def test_classes_are_dropped_by_the_key_of_their_sample_alone():
    numbers = torch.arange(1, 401)
    dropped = drop_classes(0, 7, range(400), numbers, 0.25)
    assert torch.equal(dropped[dropped > 0], numbers[dropped > 0])
    assert 70 <= (dropped == 0).sum() <= 130  # 100 +- 3.5 standard deviations
    parts = [
        drop_classes(0, 7, range(start, start + 40), numbers[start : start + 40], 0.25) for start in range(0, 400, 40)
    ]
    assert torch.equal(torch.cat(parts), dropped)
    assert not torch.equal(drop_classes(0, 8, range(400), numbers, 0.25), dropped)
    assert torch.equal(drop_classes(0, 7, range(400), numbers, 0.0), numbers)
    assert not drop_classes(0, 7, range(400), numbers, 1.0).any()


def seen_classes(trainer: Trainer) -> list[int]:
    """The classes that the network sees in the first step."""
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(kwargs["class_index"].tolist()), with_kwargs=True
    )
    trainer.accumulate(trainer.batches(), step=0)
    return seen


def test_a_step_sees_the_same_classes_however_it_is_split(classes):
    half = classes.replaced({"class_dropout": 0.5, "batch_size": 8, "generator": "content"})
    seen = seen_classes(Trainer(half, CPU))
    assert 0 in seen
    assert any(seen)
    assert seen_classes(Trainer(half.replaced({"accum_steps": 4}), CPU)) == seen


# Runs


def test_a_run_with_classes_resumes_bit_for_bit_and_keeps_its_classes(classes, tmp_path):
    fit(Trainer(classes, CPU))
    whole = load_checkpoint(latest_checkpoint(classes.train.out))
    assert whole.config.model.class_names == NAMES
    assert any(t.any() for name, t in whole.state_dict.items() if name.endswith("class_embedding"))
    first = load_checkpoint(Path(classes.train.out, "checkpoint_00000002.pt"))
    out = tmp_path / "resumed"
    out.mkdir()
    save_checkpoint(out / "checkpoint_00000002.pt", replace(first, config=first.config.replaced({"out": str(out)})))
    config, resume, init = train_config(parse_flags(["--resume", "auto", "--out", str(out), "--classes"]))
    fit(Trainer(config, CPU, resume, init))
    again = load_checkpoint(latest_checkpoint(out))
    assert all(torch.equal(tensor, again.state_dict[name]) for name, tensor in whole.state_dict.items())


def test_a_run_without_classes_does_not_get_them_on_resuming(tmp_path):
    path = saved(tmp_path / "checkpoint_00000001.pt", out=str(tmp_path))
    with pytest.raises(ValueError, match=r"--classes: the network of .* has no classes; .*--init"):
        train_config(parse_flags(["--resume", str(path), "--classes"]))


@pytest.mark.parametrize("known", [(), ("brown", "red"), NAMES])
def test_a_run_that_begins_from_other_weights_keeps_the_rows_of_known_classes(classes, folder, tmp_path, known):
    init = load_any(saved(tmp_path / "init.pt", class_names=known))
    flags = ["--init", str(tmp_path / "init.pt"), "--classes", "--data", str(folder), "--out", str(tmp_path / "run")]
    config, _, _ = train_config(parse_flags([*flags, "-b", "4", "-j", "0"]))
    trainer = Trainer(config, CPU, init=init)
    assert trainer.config.model.class_names == NAMES
    for name, tensor in trainer.model.state_dict().items():
        if not name.endswith("class_embedding"):
            assert torch.equal(tensor, init.state_dict[name])
            continue
        for number, label in enumerate(("", *NAMES)):
            row = ("", *known).index(label) if known and label in ("", *known) else None
            expected = torch.zeros_like(tensor[0]) if row is None else init.state_dict[name][row]
            assert torch.equal(tensor[number], expected)


def test_the_embedding_of_another_condition_starts_at_zero_if_the_weights_lack_it_and_is_kept_or_dropped_otherwise():
    own = {f"norm.{name}": torch.ones(3, 2) for name in ("class_embedding", "speed_embedding", "my_class_embedding")}
    state = {"norm.my_class_embedding": torch.full((3, 2), 5.0), "norm.weight": torch.ones(2)}
    state["norm.former_embedding"] = torch.ones(3, 2)
    adapted = relabelled(state, (), ("a", "b"), own)
    assert adapted.keys() == {*own, "norm.weight"}
    for name, value in (("class_embedding", 0), ("speed_embedding", 0), ("my_class_embedding", 5)):
        assert torch.equal(adapted[f"norm.{name}"], torch.full((3, 2), float(value)))


def test_a_run_without_classes_may_begin_from_weights_with_them(tiny, tmp_path):
    init = load_any(saved(tmp_path / "init.pt", class_names=NAMES))
    config, _, _ = train_config(parse_flags(["--init", str(tmp_path / "init.pt"), "--data", tiny.data.data, "-j", "0"]))
    model = Trainer(config.replaced({"out": str(tmp_path / "run")}), CPU, init=init).model
    assert not any(name.endswith("class_embedding") for name in model.state_dict())


def test_dropping_without_classes_is_refused():
    with pytest.raises(ValueError, match="--class-dropout has no effect: it is for --classes"):
        train_config(parse_flags(["--class-dropout", "0.2"]))


def test_the_names_are_in_checkpoints_of_both_formats(tmp_path):
    checkpoint = load_checkpoint(saved(tmp_path / "a.pt", class_names=NAMES))
    save_safetensors(tmp_path / "a.safetensors", checkpoint)
    for path in ("a.pt", "a.safetensors"):
        assert load_any(tmp_path / path).config.model.class_names == NAMES


@pytest.mark.parametrize("names", [[1, 2], ["a"] * 100_001, [["a"]]])
def test_names_in_a_file_that_are_none_are_refused(names):
    with pytest.raises(ValueError, match="class_names"):
        Config.from_dict({"model": {"class_names": names}})


@pytest.mark.parametrize("kind", ["motion", "content"])
def test_previews_have_the_classes_of_the_held_out_videos(classes, kind):
    trainer = Trainer(classes.replaced({"generator": kind}), CPU)
    samples = trainer.data.samples(trainer.data.held_out, 0, flip=False)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["class_index"].tolist()), with_kwargs=True
    )
    validator = Validator(trainer.config, trainer.data.held_out, samples, CPU)
    validator.num_frames = 2
    validator.video(trainer.model)
    expected = [NAMES.index(path.parent.name) + 1 for path in trainer.data.held_out.paths[:4]]
    assert seen == [expected if kind == "motion" else [1, 2, 3, 1]] * len(seen)


# Guidance


def fake(x_t: torch.Tensor, t: torch.Tensor, class_index: torch.Tensor | None = None) -> torch.Tensor:
    """Predicts 0.1 x_t + the number of the class, and the variance 0.5 times that number."""
    number = torch.zeros(len(x_t)) if class_index is None else class_index
    number = number.float().view(-1, 1, 1, 1).expand_as(x_t)
    return torch.cat([0.1 * x_t + number, 0.5 * number], dim=1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_without_plus_scale_times_the_difference(scale):
    x_t, numbers = keyed_normal((1,), (2, 3, 4, 4)), torch.tensor([1, 2])
    prediction, variance = guided(fake, scale)(x_t, torch.tensor([3, 3]), class_index=numbers).chunk(2, dim=1)
    assert torch.allclose(prediction, 0.1 * x_t + scale * numbers.view(-1, 1, 1, 1))
    assert torch.equal(variance, fake(x_t, x_t, numbers)[:, 3:])


def test_a_network_that_overwrites_its_output_when_called_again_can_be_guided():
    x_t, t, numbers = keyed_normal((1,), (2, 3, 4, 4)), torch.tensor([3, 3]), torch.tensor([1, 2])
    output = torch.empty(2, 6, 4, 4)

    def compiled(*args, **kwargs):  # as by a CUDA graph
        return output.copy_(fake(*args, **kwargs))

    found = guided(compiled, 2.0)(x_t, t, class_index=numbers)
    assert torch.equal(found, guided(fake, 2.0)(x_t, t, class_index=numbers))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_is_guided_and_a_scale_of_one_changes_no_bit(sampler, prediction):
    diffusion = GaussianDiffusion(respacing="3", prediction=prediction)
    bound, numbers = partial(SAMPLERS[sampler], diffusion), torch.tensor([1, 0])
    noise = {"noise": lambda step, like: keyed_normal((step,), like.shape)}
    x = keyed_normal((9,), (2, 3, 4, 4))
    plain = bound(fake, x, {"class_index": numbers}, **noise)
    assert torch.equal(with_classes(bound, numbers)(fake, x, None, **noise), plain)
    strong = with_classes(bound, numbers, 2.0)(fake, x, None, **noise)
    assert not torch.equal(strong[0], plain[0])
    assert torch.equal(strong[1], plain[1])  # a video without class has nothing to be guided to


def test_guided_eps_and_v_of_the_same_denoiser_are_the_same_frame():
    steps = {name: GaussianDiffusion(prediction=name) for name in PREDICTIONS}
    x_t, t = keyed_normal((1,), (1, 3, 4, 4)), torch.tensor([400])
    signal, noise = (steps["eps"]._at(name, t, x_t) for name in ("signal", "noise"))
    found = []
    for name in PREDICTIONS:

        def denoiser(x, t, class_index, name=name):
            x_start = 0.1 * class_index.view(-1, 1, 1, 1) + 0 * x
            eps = (x - signal * x_start) / noise
            return torch.cat([eps if name == "eps" else signal * eps - noise * x_start, 0 * x], dim=1)

        kwargs = {"class_index": torch.tensor([2])}
        p = steps[name].p_mean_variance(guided(denoiser, 3.0), x_t, t, kwargs)
        found.append(p.pred_xstart)
    assert torch.allclose(found[0], torch.full_like(found[0], 0.6), atol=1e-5)
    assert torch.allclose(found[1], found[0], atol=1e-5)


# Sampling


def test_videos_of_classes_differ_and_guidance_one_is_none_bit_for_bit(generator, frame):
    red, blue = (generator.animate(frame, class_name=name, **QUICK) for name in ("red", "blue"))
    assert np.array_equal(red[0], frame)
    assert not np.array_equal(red[1], blue[1])
    assert np.array_equal(generator.animate(frame, class_name="red", guidance=1, **QUICK), red)
    assert not np.array_equal(generator.animate(frame, class_name="red", guidance=3, **QUICK)[1], red[1])


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_guided_videos_in_bfloat16_are_nearly_the_same(generator, frame, precision):
    exact, rounded = (
        generator.animate(frame, class_name="red", guidance=2, precision=each, **QUICK) for each in ("fp32", precision)
    )
    assert np.abs(exact.astype(int) - rounded).mean() < 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give class_name, one of blue, green, red"),
        ({"class_name": "pink"}, "^class_name pink: choose from blue, green, red"),
    ],
)
def test_a_class_must_be_given_and_known(generator, frame, values, message):
    with pytest.raises(ValueError, match=message):
        generator.animate(frame, **values, **QUICK)


@pytest.mark.parametrize(
    ("values", "flag"), [({"class_name": "red"}, "class_name red"), ({"guidance": 2}, "guidance 2")]
)
def test_a_generator_without_classes_takes_neither_class_nor_guidance(tmp_path, frame, values, flag):
    plain = load_generator(saved(tmp_path / "plain.pt"), device="cpu")
    with pytest.raises(ValueError, match=f"^{flag}: .*plain.pt has no classes; train with classes"):
        plain.animate(frame, **values, **QUICK)


def test_a_mistake_about_classes_is_the_only_line_that_sampling_prints(tmp_path, capsys):
    plain = saved(tmp_path / "plain.pt")
    with pytest.raises(SystemExit):
        sample_main(f"--resume {plain} --content {tmp_path} --guidance 2".split())
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: --guidance 2: {plain} has no classes; train with --classes\n")


def record(out: Path, index: int) -> dict:
    return json.loads((out / f"video_{index:05d}.json").read_text())["settings"]


def test_generated_first_frames_have_all_classes_in_turn(generator, tmp_path):
    out = tmp_path / "out"
    sample_folder(generator, SampleConfig(out=str(out), num_samples=4, format="npy", **QUICK))
    assert [record(out, i)["class_name"] for i in range(4)] == ["blue", "green", "red", "blue"]
    alone = generator.generate(1, first_index=2, class_name="red", **QUICK)[0]
    assert np.abs(np.load(out / "video_00002.npy").astype(int) - alone).max() <= 2


def test_a_video_has_the_class_of_its_first_frames_folder_unless_one_is_given(generator, folder, tmp_path):
    motion = replace(generator, content_model=None, content_config=None, _networks={})
    for out, values, expected in (("a", {}, [*NAMES]), ("b", {"class_name": "red", "guidance": 2}, ["red"] * 3)):
        settings = SampleConfig(content=str(folder), out=str(tmp_path / out), **QUICK, **values)
        sample_folder(motion, settings)
        assert [record(tmp_path / out, i)["class_name"] for i in (0, 2, 4)] == expected
        sample_folder(motion, settings)  # all of them exist
    np.save(tmp_path / "clip.npy", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"clip.npy is not in the folder of a class: give class_name, one of blue, green"
    ):
        sample_folder(motion, SampleConfig(content=str(tmp_path / "clip.npy"), out=str(tmp_path / "c"), **QUICK))
    assert not (tmp_path / "c").exists()


def test_a_video_has_the_class_that_a_csv_list_gives_its_first_frame(generator, folder, tmp_path):
    motion = replace(generator, content_model=None, content_config=None, _networks={})
    file = tmp_path / "clips.csv"
    rows = ["path,start,length,class", f"{folder}/blue/000.npy,0,8,red", f"{folder}/blue/000.npy,8,8,green"]
    file.write_text("\n".join(rows) + "\n")
    sample_folder(motion, SampleConfig(content=str(file), out=str(tmp_path / "listed"), **QUICK))
    assert [record(tmp_path / "listed", i)["class_name"] for i in (0, 1)] == ["red", "green"]
    file.write_text("\n".join(rows).replace("green", "violet") + "\n")
    with pytest.raises(
        ValueError, match=r"000\.npy\[8:16\] has the class violet: give class_name, one of blue, green, red"
    ):
        sample_folder(motion, SampleConfig(content=str(file), out=str(tmp_path / "unknown"), **QUICK))


def test_posgn_is_computed_once_for_a_batch_of_one_class(generator, frame, monkeypatch):
    sizes = set()
    norm = type(next(m for name, m in generator.model.named_modules() if name.endswith("emb_layers")))
    angles = norm.angles
    monkeypatch.setattr(norm, "angles", lambda *args: sizes.add((found := angles(*args)).shape[0]) or found)
    settings = SampleConfig(guidance=2, **QUICK)
    generator.animate_batch([frame] * 3, range(3), settings, classes=["red"] * 3)
    assert sizes == {1}


def most_colourful(frame: np.ndarray) -> np.ndarray:
    """The most saturated 8 x 8 pixels of a frame (32, 32, 3): a solid of it."""
    saturation = np.ptp(frame.astype(int), axis=2)
    places = [(y, x) for y in range(25) for x in range(25)]
    y, x = max(places, key=lambda place: saturation[place[0] : place[0] + 8, place[1] : place[1] + 8].sum())
    return frame[y : y + 8, x : x + 8]


def colour_of(frame: np.ndarray) -> str:
    """The primary colour that dominates the most saturated quarter of a frame."""
    chroma = frame.reshape(-1, 3) - frame.reshape(-1, 3).mean(1, keepdims=True)
    strongest = np.abs(chroma).max(1).argsort()[-len(chroma) // 4 :]
    return ("red", "green", "blue")[chroma[strongest].mean(0).argmax()]


@pytest.mark.slow
def test_after_a_short_training_the_class_shows_in_the_colour_of_the_solids(classes, tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(16):
            world = CollisionWorld(seed=3, index=1000 * i + k, num_frames=1)
            world.solids = [solid._replace(albedo=COLOURS[name], metal=False) for solid in world.solids]
            frame = most_colourful(render_clip(world, 32)[0])
            assert colour_of(frame) == name
            np.save(tmp_path / "data" / name / f"{k:03d}.npy", frame[None])
    values = {"generator": "content", "image_size": 8, "batch_size": 16, "total_iters": 200, "lr": 4e-3, "held_out": 0}
    short = {"loss": "mse", "ema_decay": 0.95, "data": str(tmp_path / "data")}
    trainer = Trainer(classes.replaced(values | short), CPU)
    batches = trainer.batches()
    for _ in range(200):
        trainer.train_step(batches)
    model = build_model(trainer.config)
    model.load_state_dict(trainer.ema.state_dict())
    made = Generator(model, trainer.config, CPU, tmp_path, content_model=model, content_config=trainer.config)
    frames = made.draw_first_frames(range(36), SampleConfig(steps="10", guidance=3))
    # Chance is 1/3. Three seeds of the run gave 0.97, 1 and 1, without guidance 0.81, 0.83 and 0.81.
    assert np.mean([colour_of(frame) == NAMES[i % 3] for i, frame in enumerate(frames)]) >= 0.7
