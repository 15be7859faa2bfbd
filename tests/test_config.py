"""Tests of the settings: each is defined once, choices are valid, and errors name the flag."""

import re
import time
from collections import Counter
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import torch
from torch import nn

from vidm.checkpoint import build_model
from vidm.config import PRECISIONS, Config
from vidm.diffusion import LOSSES, PREDICTIONS
from vidm.frame_size import FITS
from vidm.layouts import LAYOUTS
from vidm.model import FLOW_RANGES
from vidm.presets import DESCRIPTIONS, PRESETS
from vidm.sample_config import SAMPLING_PRECISIONS, SUFFIXES, SampleConfig
from vidm.samplers import SAMPLERS
from vidm.schedules import SCHEDULES
from vidm.settings import flagged
from vidm.unet import NORMS, UNetShape


def test_each_setting_is_defined_once_and_has_a_help_text():
    names = Counter(f.name for section in Config().sections() for f in fields(section))
    assert max(names.values()) == 1
    network = {f.name for f in fields(UNetShape)}  # described in its docstring
    for section in (*Config().sections(), SampleConfig()):
        assert all(f.metadata.get("help") or f.name in network for f in fields(section))


def test_a_configuration_equals_its_copy_from_a_dictionary():
    for name in PRESETS:
        config = Config.from_preset(name)
        assert Config.from_dict(config.to_dict()) == config


def test_replacing_does_not_change_the_original():
    config = Config()
    assert config.replaced({"lr": 1.0, "image_size": 64}).model.image_size == 64
    assert config == Config()
    with pytest.raises(FrozenInstanceError):
        config.train.lr = 1.0


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="there is no setting learning_rate"):
        Config().replaced({"learning_rate": 1.0})


def test_the_paper_preset_is_the_published_configuration():
    config = Config.from_preset("paper128")
    assert config == Config()
    assert (config.model.image_size, config.model.video_timesteps) == (128, 128)
    assert (config.train.lr, config.train.clip_norm, config.train.ema_decay) == (2e-5, 1.0, 0.999)
    assert (config.diffusion.prediction, config.diffusion.p2_gamma) == ("eps", 1.0)


def test_all_presets_but_the_published_one_predict_v():
    assert {Config.from_preset(name).diffusion.prediction for name in PRESETS if name != "paper128"} == {"v"}


@pytest.mark.parametrize("generator", ["motion", "content"])
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "paper128"])
def test_the_groups_of_every_norm_of_a_preset_have_enough_channels_for_brightness_and_hue(name, generator):
    with torch.device("meta"):
        model = build_model(Config.from_preset(name).replaced({"generator": generator}))
    channels = {m.num_channels // m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert min(channels) >= 4
    assert max(channels) <= 8


def test_the_table_of_presets_has_their_sizes():
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    rows = re.findall(
        r"^\| `(\w+(?:-\w+)?)` \| (?:(\d+) of )?(\d+) x \3 \| ([\d.]+) M \|.* \| (.*) \|$", page, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(PRESETS)
    for name, length, side, millions, purpose in rows:
        config = Config.from_preset(name)
        with torch.device("meta"):
            number = sum(p.numel() for p in build_model(config).parameters())
        assert (purpose, millions) == (DESCRIPTIONS[name], f"{number / 1e6:.1f}")
        assert (int(side), length) == (
            config.model.image_size,
            "" if config.model.generator == "content" else str(config.model.video_timesteps),
        )


def test_no_two_settings_of_a_run_have_the_same_flag():
    flags = [flag for section in Config().sections() for f in flagged(section) for flag in f.metadata["flags"]]
    assert max(Counter(flags).values()) == 1


def test_the_choices_of_a_flag_are_the_names_that_the_code_accepts():
    accepted = {
        "generator": ("motion", "content"),
        "flow_range": FLOW_RANGES,
        "norm": NORMS,
        "schedule": SCHEDULES,
        "prediction": PREDICTIONS,
        "loss": LOSSES,
        "layout": LAYOUTS,
        "content_frames": ("first", "all"),
        "fit": FITS,
        "lr_schedule": ("constant", "cosine"),
        "checkpoint_activations": ("none", "posgn", "full"),
        "precision": PRECISIONS,
        "sampler": SAMPLERS,
        "start_noise": ("frame", "video"),
        "format": SUFFIXES,
    }
    found = {f.name: f.metadata["choices"] for section in Config().sections() for f in flagged(section)}
    sampling = {f.name: f.metadata["choices"] for f in flagged(SampleConfig())}
    assert sampling.pop("precision") == SAMPLING_PRECISIONS
    offered = {name: choices for name, choices in (found | sampling).items() if choices}
    assert offered == {name: tuple(names) for name, names in accepted.items()}


def test_every_generator_that_the_flag_offers_is_built():
    (generator,) = (f for f in flagged(Config().model) if f.name == "generator")
    config = Config.from_preset("tiny")
    kinds = {type(build_model(config.replaced({"generator": name}))).__name__ for name in generator.metadata["choices"]}
    assert kinds == {"MotionGenerator", "ContentGenerator"}


def test_an_unknown_preset_or_setting_is_reported_with_those_that_may_be_meant():
    with pytest.raises(ValueError, match=r"preset 'tyni': choose from paper128, .*tiny"):
        Config.from_preset("tyni")
    with pytest.raises(ValueError, match=r"there is no setting num_frames; did you mean video_timesteps\?"):
        Config().replaced({"num_frames": 8})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "l1"}, "^loss 'l1': choose from charbonnier, mse"),
        ({"flow_range": "full"}, "^flow_range 'full': choose from unit, published, none"),
        ({"precision": "bf16-weights"}, "^precision 'bf16-weights': choose from auto, fp32, tf32, bf16, fp16"),
        ({"held_out": -1}, "^held_out -1: give 0 or more"),
        ({"max_bad_fraction": 2.0}, r"^max_bad_fraction 2\.0: give a number from 0 to 1"),
        ({"condition_noise": float("inf")}, "^condition_noise inf: give a number from 0 to"),
        ({"lr": 0.0}, r"^lr 0\.0: give a number above 0$"),
    ],
)
def test_an_invalid_setting_of_training_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Config().replaced(values).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"psi": 1.5}, r"^psi 1\.5: give a number from 0 to 1"),
        ({"psi": float("nan")}, "^psi nan: give a number from 0 to 1"),
        ({"sampler": "euler"}, r"^sampler 'euler': choose from ddpm, ddim, dpm-solver\+\+"),
        ({"fps": 1001.0}, r"^fps 1001\.0: give a number from 0.1 to 1000"),
        ({"num_frames": "16"}, "^num_frames '16': give a whole number"),
        ({"seed": 1.5}, "^seed 1.5: give a whole number"),
        ({"guidance": "2"}, "^guidance '2': give a number"),
        ({"steps": 0}, "^steps '0': give a number of steps, as 100, ddim100 .* 10,15,20"),
        ({"content_steps": "many"}, "^content_steps 'many': give a number of steps"),
        ({"num_samples": 0}, "^num_samples 0: give a number from 1 to 1000000"),
        ({"eta": 0.5}, r"^eta 0\.5: only sampler ddim uses it, and the sampler is dpm-solver\+\+"),
    ],
)
def test_a_sample_config_with_an_invalid_setting_cannot_be_created(values, message):
    with pytest.raises(ValueError, match=message):
        SampleConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 17}, "--num-frames 17: the model was trained on 16 frames, .* or add --anchor-every K"),
        ({"anchor_every": 16}, "--anchor-every 16: the model was trained on 16 frames, give 1 to 15"),
        ({"steps": "1001"}, "--steps '1001': 1001 steps do not fit into a schedule of 1000"),
    ],
)
def test_settings_that_do_not_fit_a_generator_are_named(values, message):
    settings = SampleConfig(**values)
    with pytest.raises(ValueError, match=message):
        settings.check_for(Config.from_preset("tiny"))


def test_content_steps_are_checked_against_the_content_generators_process():
    short = Config.from_preset("tiny").replaced({"diffusion_timesteps": 10})
    SampleConfig(steps=20, content_steps=10).check_for(Config.from_preset("tiny"), short)
    with pytest.raises(ValueError, match="--content-steps"):
        SampleConfig(steps=20).check_for(Config.from_preset("tiny"), short)


def test_steps_may_be_a_number():
    assert SampleConfig(steps=5, content_steps=7) == SampleConfig(steps="5", content_steps="7")


def test_channel_counts_of_old_files_are_accepted_only_if_they_are_the_fixed_ones():
    old = {"model": {"in_channels": 3, "out_channels": 6, "model_channels": 32}}
    assert Config.from_dict(old).model.model_channels == 32
    with pytest.raises(ValueError, match="setting in_channels"):
        Config.from_dict({"model": {"in_channels": 1}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": ""}, "^out is empty"),
        ({"data": ""}, "^data is empty"),
        ({"ema_decay": 2.0}, r"^ema_decay 2\.0: give a number from 0 to 0\.999999999"),
    ],
)
def test_empty_folders_and_a_decay_outside_its_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Config.from_preset("tiny").replaced(values).check()


def test_defaults_that_the_fidelity_page_states():
    train, diffusion, sample = Config().train, Config().diffusion, SampleConfig()
    assert (train.condition_noise, train.offset_noise, train.weight_decay) == (0.0, 0.0, 0.0)
    assert (diffusion.loss, diffusion.penalty_eps, diffusion.schedule) == ("charbonnier", 1e-8, "linear")
    assert (diffusion.p2_gamma, diffusion.p2_k) == (1, 1)
    assert (sample.start_noise, sample.sampler, sample.steps, sample.psi) == ("video", "dpm-solver++", "20", 1.0)


@pytest.mark.parametrize("name", ["attention_resolutions", "channel_mult"])
def test_a_long_list_in_a_file_is_refused_at_once(name):
    """Two million numbers took half a minute to refuse."""
    settings = Config().to_dict()
    settings["model"][name] = [16] * 2_000_000
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"setting {name} is \(16, 16, .*not whole numbers, at most 100"):
        Config.from_dict(settings)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("diffusion", {"loss": "a" * 10**6}),
        ("train", {"lr": "a" * 10**6}),
        ("train", {"lr": [[1] * 100] * 100}),
        ("train", {"batch_size": 10**4000}),
        ("train", {"a" * 10**6: 1}),
        ("model", {"channel_mult": ["a" * 10**6] * 100}),
    ],
)
def test_a_message_does_not_repeat_a_long_value_of_a_file(section, values):
    settings = Config().to_dict()
    settings[section] |= values
    with pytest.raises(ValueError, match=r"^.{10,1200}$"):
        Config.from_dict(settings)
