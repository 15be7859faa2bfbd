"""Tests of --config and --set: what they reach, what wins over what, and what a file from elsewhere may not decide."""

import json

import pytest

from vidm.cli import train_config, train_main
from vidm.cli_flags import parse_flags
from vidm.config import SETTINGS, Config
from vidm.config_file import read_config
from vidm.presets import DESCRIPTIONS, PRESETS
from vidm.resume import trains_flow
from vidm.settings import from_text


def config_of(*flags: str) -> Config:
    return train_config(parse_flags(flags))[0]


def error_of(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as exit_info:
        train_main(argv)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_file_wins_over_the_preset_and_a_flag_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("lr = 0.5\nkeep = 7\n[model]\nmodel_channels = 40\nchannel_mult = [1, 2, 3]\n[train]\nseed = 3\n")
    config = config_of("--preset", "tiny", "--config", str(file), "--seed", "4")
    expected = {"lr": 0.5, "keep": 7, "model_channels": 40, "channel_mult": (1, 2, 3), "seed": 4}
    assert config == Config.from_preset("tiny").replaced(expected)


@pytest.mark.parametrize("name", PRESETS)
def test_the_printed_configuration_is_read_again_from_the_folder_of_its_run(tmp_path, capsys, name):
    out = tmp_path / "run"
    out.mkdir()
    flags = ["--preset", name, "--out", str(out), "--data", "somewhere", "--set", "flip=false"]
    train_main([*flags, "--print-config"])
    printed = capsys.readouterr().out
    (out / "config.json").write_text(printed)
    assert Config.from_dict(json.loads(printed)) == config_of(*flags)
    for given in (out / "config.json", out):
        assert config_of("--config", str(given)) == config_of(*flags)


def test_the_printed_configuration_is_checked_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert error_of(["--batch-size", "3", "--accum-steps", "2", "--print-config"], capsys).startswith("error: --batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1", r"run\.toml: there is no setting learning_rat"),
        (
            "image_size = '16x24'",
            r"run\.toml: setting image_size is '16x24': give a whole number, or two for height and width",
        ),
        ("image_size = [16, 0]", r"run\.toml: image_size 16x0: give a number from 1 to 8192"),
        ("weight_deca = 1", r"run\.toml: there is no setting weight_deca; did you mean weight_decay\?"),
        (
            "[modle]\nnorm = 'posgn'",
            r"run\.toml: unknown section 'modle': the sections are model, diffusion, data, tra",
        ),
        ("lr = 'fast'", r"run\.toml: setting lr is 'fast', not of type float"),
        ("lr = 1979-05-27", r"run\.toml: setting lr is .*, not of type float"),
        ("lr = -1.0", r"run\.toml: lr -1\.0: give a number above 0"),
        ("lr = nan", r"run\.toml: lr nan: give a number above 0"),
        ("clip_norm = 0.0", r"run\.toml: clip_norm 0\.0: give a number above 0"),
        ("norm = 'batch'", r"run\.toml: norm 'batch': choose from posgn, timestep"),
        ("lr = 1.0\n[train]\nlr = 1.0", r"run\.toml: setting lr is there twice"),
        ("preset = 'tiny'", r"run\.toml: there is no setting preset; give it as a flag, --preset"),
        ("num_frames = 8", r"run\.toml: there is no setting num_frames; did you mean video_timesteps\?"),
        ('{"train": {"lr": 1.0}}', r"run\.toml is JSON: rename it to run\.json, or save it as TOML"),
        ("lr =", r"run\.toml is not TOML that can be read: Invalid value"),
        ("a = " + "[" * 20_000, r"run\.toml is not TOML that can be read"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file_and_the_setting(tmp_path, capsys, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(file)
    assert str(file) in error_of(["--config", str(file), "--print-config"], capsys)


def test_toml_in_a_file_that_is_named_json_is_told_so(tmp_path):
    (tmp_path / "run.json").write_text("lr = 1.0\n")
    with pytest.raises(ValueError, match=r"run\.json is TOML: rename it to run\.toml"):
        read_config(tmp_path / "run.json")


@pytest.mark.parametrize("text", ["[1]", "3", "{", '{"lr": {"a": 1}}'])
def test_json_without_settings_by_name_is_refused(tmp_path, text):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_config(file)


@pytest.mark.parametrize("name", ["data", "out", "spynet", "init"])
def test_a_file_outside_the_folder_of_its_run_decides_no_path(tmp_path, name):
    run, copy = tmp_path / "run" / "config.json", tmp_path / "config.json"
    run.parent.mkdir()
    values = {"out": str(run.parent), name: str(run.parent)}
    for file in (run, copy):
        file.write_text(json.dumps(values))
    assert read_config(run) == values
    with pytest.raises(ValueError, match=rf"config\.json is not in the folder of its run, so its --{name} .* not used"):
        read_config(copy, {"out": "elsewhere"} if name != "out" else {})
    assert read_config(copy, {"out": "elsewhere", name: "given"}) == values


def test_another_run_finds_out_itself_what_the_run_of_the_file_found_out(tmp_path):
    found = {"out": str(tmp_path), "classes": True, "class_names": ("left", "right"), "train_flow": True}
    (tmp_path / "config.json").write_text(json.dumps(Config().replaced(found).to_dict()))
    config = config_of("--config", str(tmp_path), "--set", "classes=false", "--spynet", "flow.pt")
    assert (config.model.class_names, trains_flow(config)) == ((), False)
    assert trains_flow(config_of("--config", str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(Config().replaced({**found, "spynet": str(tmp_path)}).to_dict()))
    assert trains_flow(config_of("--config", str(tmp_path))), "as was asked by --train-flow"
    (tmp_path / "some.toml").write_text("train_flow = true\n")
    assert trains_flow(config_of("--config", str(tmp_path / "some.toml"), "--spynet", "flow.pt"))


def test_every_setting_can_be_set_from_text():
    for name, each in SETTINGS.items():
        value = each.default
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found = from_text(each, text)
        assert (found, type(found)) == (value, type(value)), name


def test_a_rectangle_is_read_from_a_flag_text_toml_and_json(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("image_size = [64, 96]\nfit = 'pad'\n")
    train_main(["--resolution", "64x96", "--fit", "pad", "--print-config"])
    (tmp_path / "run.json").write_text(capsys.readouterr().out)
    expected = Config().replaced({"image_size": (64, 96), "fit": "pad"})
    assert config_of("--set", "image_size=64x96", "--set", "fit=pad") == expected
    assert [config_of("--config", str(tmp_path / name)) for name in ("run.toml", "run.json")] == [expected] * 2
    (tmp_path / "run.toml").write_text("image_size = [64, 64]\n")
    assert config_of("--config", str(tmp_path / "run.toml")).model.image_size == 64


def test_set_reaches_settings_without_a_flag():
    words = "model_channels=96 channel_mult=1,2,3 weight_decay=0.1 clip_norm=0.5 flip=false".split()
    config = config_of("--lr", "1", *(word for each in words for word in ("--set", each)), "--set", "lr=2e-4")
    assert (config.model.model_channels, config.model.channel_mult) == (96, (1, 2, 3))
    assert (config.train.weight_decay, config.train.clip_norm, config.train.lr) == (0.1, 0.5, 2e-4)
    assert config.data.flip is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "--set lr: give NAME=VALUE"),
        ("batch-size=3", "there is no setting batch-size; did you mean batch_size?"),
        ("resolution=32", "there is no setting resolution; did you mean image_size?"),
        ("modelchannels=3", "there is no setting modelchannels; did you mean model_channels?"),
        ("flip=maybe", "flip is 'maybe': give true or false"),
        ("channel_mult=a", "channel_mult is 'a': give whole numbers as 1,2,4"),
        (
            "image_size=16x",
            "--set image_size=16x: image_size is '16x': give the side of squares as 64, or height x width",
        ),
        ("image_size=16x0", "--resolution 16x0: give a number from 1 to 8192"),
        ("batch_size=1.5", "batch_size is '1.5': give a whole number"),
        ("lr=fast", "lr is 'fast': give a number"),
        ("clip_norm=0", "--set clip_norm 0.0: give a number above 0"),
        ("loss=l1", "--loss 'l1': choose from charbonnier, mse"),
        ("num_heads=2", "--set num_heads has no effect"),
        ("content_frames=all", "--content-frames has no effect: it is for --generator content"),
    ],
)
def test_a_mistake_in_set_is_one_line(capsys, text, message):
    assert message in error_of(["--set", text, "--print-config"], capsys)


def test_help_says_what_a_preset_sets_and_what_presets_there_are(capsys):
    assert DESCRIPTIONS.keys() == PRESETS.keys()
    for flags, shown in (
        (["--preset", "world", "--help"], ["--preset world, ", "  --lr 0.0008\n", "  --set flip=false\n"]),
        (["--help"], [*PRESETS, "settings without a flag, for --set: attention_resolutions"]),
    ):
        with pytest.raises(SystemExit):
            train_main(flags)
        printed = capsys.readouterr().out
        assert all(text in printed for text in shown)
