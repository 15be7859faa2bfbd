"""Claims about the settings: every knob once, and bad values named."""

from collections import Counter
from dataclasses import FrozenInstanceError, fields

import pytest

from vidm.config import Config, SampleConfig, knobs
from vidm.presets import PRESETS
from vidm.unet import UNetShape


def test_a_knob_has_one_home_and_a_help_text():
    names = Counter(f.name for section in Config().sections() for f in fields(section))
    assert max(names.values()) == 1
    network = {f.name for f in fields(UNetShape)}  # described in its docstring
    for section in (*Config().sections(), SampleConfig()):
        assert all(f.metadata.get("help") or f.name in network for f in fields(section))


def test_dictionaries_round_trip():
    for name in PRESETS:
        config = Config.from_preset(name)
        assert Config.from_dict(config.to_dict()) == config


def test_replacing_leaves_the_original_alone():
    config = Config()
    assert config.replaced({"lr": 1.0, "image_size": 64}).model.image_size == 64
    assert config == Config()
    with pytest.raises(FrozenInstanceError):
        config.train.lr = 1.0


def test_an_unknown_knob_is_named():
    with pytest.raises(ValueError, match="unknown settings: learning_rate"):
        Config().replaced({"learning_rate": 1.0})


def test_the_paper_preset_is_the_published_configuration():
    config = Config.from_preset("paper128")
    assert config == Config()
    assert (config.model.image_size, config.model.video_timesteps) == (128, 128)
    assert (config.train.lr, config.train.clip_norm, config.train.ema_decay) == (2e-5, 1.0, 0.999)
    assert (config.diffusion.prediction, config.diffusion.p2_gamma) == ("eps", 1.0)


def test_small_presets_predict_v():
    assert {Config.from_preset(name).diffusion.prediction for name in ("tiny", "demo")} == {"v"}


def test_flags_are_not_shared_within_a_run():
    flags = [flag for section in Config().sections() for f in knobs(section) for flag in f.metadata["flags"]]
    assert max(Counter(flags).values()) == 1
