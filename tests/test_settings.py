"""Tests of settings: messages name them as flags in a command, and as arguments in Python."""

from pathlib import Path

import pytest

from vidm.config import Config
from vidm.layouts import index_clips
from vidm.runtime import exit_on_user_error
from vidm.sample_config import SampleConfig
from vidm.settings import arguments_named, flags_named


@pytest.mark.parametrize(
    ("wrong", "in_python", "in_a_command"),
    [
        (lambda: SampleConfig(num_samples=0), "num_samples 0: ", "--num-samples 0: "),
        (lambda: SampleConfig(eta=0.5), "eta 0.5: only sampler ddim", "--eta 0.5: only --sampler ddim"),
        (lambda: Config().replaced({"image_size": 0}).check(), "image_size 0: ", "--resolution 0: "),
        (lambda: Config().replaced({"clip_norm": 0.0}).check(), "clip_norm 0.0: ", "--set clip_norm 0.0: "),
        (lambda: index_clips(Path(__file__).parent, layout="x"), "layout x: ", "--layout x: "),
    ],
)
def test_an_error_names_arguments_in_python_and_flags_in_a_command(capsys, wrong, in_python, in_a_command):
    with pytest.raises(ValueError, match=in_python) as raised:
        wrong()
    assert str(raised.value).startswith(in_python)
    with pytest.raises(SystemExit), exit_on_user_error():
        wrong()
    assert capsys.readouterr().err.startswith(f"error: {in_a_command}")


@arguments_named(split="part")
def refused(message: str) -> None:
    raise FileNotFoundError(message)


@arguments_named(SampleConfig)
def calls_it(message: str) -> None:
    refused(message)


def test_the_function_that_was_called_names_its_arguments_and_commands_stay_as_they_are():
    message = "--split x, --class y and not-a--flag: run `script.py --split x`"
    for function, renamed in ((refused, "part x, class y"), (calls_it, "split x, class_name y")):
        with pytest.raises(FileNotFoundError) as raised:
            function(message)
        assert str(raised.value) == f"{renamed} and not-a--flag: run `script.py --split x`"
        with pytest.raises(FileNotFoundError) as raised, flags_named():
            function(message)
        assert str(raised.value) == message
