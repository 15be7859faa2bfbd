"""Tests of generators by name and of scripts/push_to_hub.py, with a local server in place of the Hub."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer, commit_id, hub_server

import vidm
from vidm.checkpoint import Checkpoint, build_model, save_checkpoint
from vidm.checkpoint_formats import load_any
from vidm.cli import parse_flags, train_config, train_main
from vidm.config import Config
from vidm.evaluation import record_of, write_json
from vidm.hub import downloaded
from vidm.metrics import FVDResult

pytest.importorskip("huggingface_hub")
from huggingface_hub import close_session, constants

ROOT = Path(__file__).parent.parent
WORLD = ROOT / "pretrained_models" / "world"
MOTION = WORLD / "motion.safetensors"
ROWS = ROOT / "benchmarks" / "results" / "ablation.jsonl"
FILES = {path.name: path.read_bytes() for path in WORLD.iterdir()}
# Files that a loader of pickles or of code would take.
OTHERS = {
    "motion.pt": b"pickle",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"raise SystemExit",
    "config.json": b"",
}
NAME = "hf:owner/world"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the shipped folder as the repository owner/world, and an empty cache."""
    with hub_server() as server:
        server.repositories["owner/world"] = [FILES | OTHERS]
        at(server.base, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
    close_session()


def at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library ask a server; it reads HF_ENDPOINT once, when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which is also read once."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_the_shipped_folder_is_a_repository_and_only_its_weights_and_settings_are_downloaded(hub):
    named = vidm.load_generator(NAME, NAME, device="cpu")
    motion, content = load_any(MOTION), load_any(WORLD / "content.safetensors")
    assert (named.config, named.content_config) == (motion.config, content.config)
    assert same(named.model.state_dict(), motion.ema_state_dict)
    assert same(named.content_model.state_dict(), content.ema_state_dict)
    assert hub.downloads() == ["motion.json", "motion.safetensors", "content.json", "content.safetensors"]


def test_a_second_time_files_come_from_the_cache_and_a_new_commit_is_downloaded(hub):
    first = downloaded(NAME, "motion")
    assert downloaded(NAME, "motion") == first
    assert hub.downloads() == ["motion.json", "motion.safetensors"]
    changed = {"motion.safetensors": FILES["motion.safetensors"] + b" "}
    hub.repositories["owner/world"].append(FILES | changed)
    second = downloaded(NAME, "motion")
    assert (first.parent.name, second.parent.name) == (commit_id(0), commit_id(1))
    assert second.read_bytes() == changed["motion.safetensors"]
    assert second.with_suffix(".json").read_bytes() == FILES["motion.json"]
    assert hub.downloads() == ["motion.json", "motion.safetensors", "motion.safetensors"]


def test_a_revision_is_a_tag_or_a_commit(hub):
    hub.repositories["owner/world"].append(dict.fromkeys(FILES, b"later"))
    hub.tags["v1.0"] = 0
    for revision in ("v1.0", commit_id(0)):
        assert downloaded(f"{NAME}@{revision}", "motion").read_bytes() == FILES["motion.safetensors"]
    assert downloaded(NAME, "motion").read_bytes() == b"later"


def test_the_cache_is_used_offline_and_without_a_network(hub, monkeypatch):
    hub.tags["v1.0"] = 0
    found = [downloaded(name, "motion") for name in (NAME, f"{NAME}@v1.0")]
    at("http://127.0.0.1:9", monkeypatch)
    assert [downloaded(name, "motion") for name in (NAME, f"{NAME}@v1.0")] == found
    at(hub.base, monkeypatch)
    hub.down = True
    assert downloaded(NAME, "motion") == found[0]
    offline(monkeypatch)
    asked = len(hub.asked)
    assert [downloaded(name, "motion") for name in (NAME, f"{NAME}@v1.0")] == found
    assert len(hub.asked) == asked


def without_files(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["owner/world"] = [OTHERS]


def without_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:9", monkeypatch)


def out_of_service(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True


def breaking_off(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.shorter = 100


def truncated(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["owner/world"] = [FILES | {"motion.safetensors": FILES["motion.safetensors"][:-100]}]


def a_pickle(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["owner/world"] = [FILES | {"motion.safetensors": b"\x80\x02cos\nsystem\n."}]


def without_library(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)


def as_is(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hf:world", as_is, "hf:world: give hf:owner/name or hf:owner/name@revision"),
        ("hf://owner/world", as_is, "give hf:owner/name or hf:owner/name@revision"),
        ("hf:owner/a--b", as_is, "hf:owner/a--b is no name of a repository: "),
        ("hf:owner/none", as_is, "hf:owner/none is not in the cache, and BASE has no such repository"),
        (f"{NAME}@v9", as_is, f"{NAME}@v9: the repository has no revision v9: give a branch, a tag or a commit"),
        (NAME, without_files, f"{NAME} has no motion generator of VIDM: it lacks motion.json and motion.safetensors"),
        (NAME, without_network, f"{NAME} is not in the cache, and http://127.0.0.1:9 cannot be reached ("),
        (NAME, out_of_service, f"{NAME} is not in the cache, and BASE cannot be reached (Server error '503 "),
        (NAME, lambda _, patch: offline(patch), f"{NAME} is not in the cache, and HF_HUB_OFFLINE is set: unset it"),
        (NAME, breaking_off, f"{NAME} was not downloaded: Consistency check failed: "),
        (NAME, truncated, "motion.safetensors is truncated or damaged: "),
        (NAME, a_pickle, "motion.safetensors is truncated or damaged: "),
        (NAME, without_library, f"{NAME} needs huggingface_hub: pip install huggingface_hub"),
    ],
)
def test_what_goes_wrong_is_one_line(hub, monkeypatch, tmp_path, capfd, name, change, message):
    change(hub, monkeypatch)
    with pytest.raises(SystemExit) as exited:
        train_main(["--test", "--resume", name, "--content", str(tmp_path), "--out", str(tmp_path / "out")])
    assert exited.value.code == 2
    output = capfd.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert message.replace("BASE", hub.base) in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_breaks_off_is_not_kept(hub):
    hub.shorter = 100
    with pytest.raises(ValueError, match="Consistency check failed"):
        downloaded(NAME, "motion")
    hub.shorter = 0
    assert downloaded(NAME, "motion").read_bytes() == FILES["motion.safetensors"]


@pytest.mark.parametrize("generator", ["motion", "content"])
def test_a_training_begins_from_a_name_with_its_generator(hub, generator):
    flags = ["--init", NAME, "--data", "data", *(["--generator", "content"] if generator == "content" else [])]
    config, _, init = train_config(parse_flags(flags))
    assert hub.downloads() == [f"{generator}.json", f"{generator}.safetensors"]
    assert (config.model, config.train.init) == (init.config.model, NAME)
    assert init.config.model.generator == generator


def test_a_resumed_training_takes_a_name(hub):
    train = json.loads(FILES["motion.json"])["config"]["train"]
    flags = ["--resume", NAME, "--data", "data", "--out", "out", "--spynet", train["spynet"]]
    config, resume, _ = train_config(parse_flags(flags))
    assert config.model == resume.config.model
    assert resume.step == json.loads(FILES["motion.json"])["iters"]


def test_the_variables_of_the_library_apply_and_it_is_imported_only_for_a_name(hub, tmp_path):
    code = """
import sys, vidm, vidm.hub
assert not {"huggingface_hub", "torch"} & sys.modules.keys()
print(vidm.hub.downloaded("hf:owner/world", "motion"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.base, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home" / "hub")
    assert path.read_bytes() == FILES["motion.safetensors"]


@pytest.fixture
def push(monkeypatch) -> Callable[..., None]:
    """Runs the script with arguments."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = runpy.run_path(str(ROOT / "scripts" / "push_to_hub.py"))["main"]

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *map(str, arguments)])
        main()

    return run


def test_a_dry_run_writes_the_shipped_files_and_a_card_with_the_measured_rows(push, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    flags = ["--content", WORLD / "content.safetensors", "--measured", ROWS, "--license", "mit"]
    push(MOTION, "owner/world", *flags, "--dry-run", tmp_path / "out")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written.keys() == FILES.keys()
    page = written.pop("README.md").decode()
    assert written == {name: FILES[name] for name in written}
    assert page.startswith("---\nlicense: mit\n")
    assert 'vidm.load_generator("hf:owner/world", "hf:owner/world")' in page
    assert "| condition_noise | 0.1 | 0.0 |" in page
    assert "data" not in page.split("## Settings")[1].split("## Measurements")[0]
    headline = FILES["README.md"].decode().split("<!-- headline -->\n")[1].split("<!-- /headline -->")[0]
    assert set(headline.splitlines()) <= set(page.splitlines())
    assert "| no encoder |" not in page  # a row of other weights


def test_a_card_has_the_numbers_of_an_evaluation(push, tmp_path):
    result = FVDResult(
        **{"value": 0.25, "values": (0.24, 0.26), "kernel": 0.001, "kernel_values": (0.001,), "matched": 0.25},
        **{
            "floor": 0.02,
            "matched_deviation": 0.01,
            "floor_deviation": 0.001,
            "kernel_matched_deviation": None,
            "kernel_floor_deviation": None,
            "kernel_matched": 0.002,
            "kernel_floor": 0.003,
            "matched_samples": (32, 32),
            "name": "random",
            "protocol": "stylegan-v",
            "feature_dim": 512,
        },
        **{"num_samples": (256, 64), "num_frames": 16, "frame_strides": (1, 1), "resolution": None, "fit": "crop"},
        **{"size": (32, 48), "seed": 0, "skipped": (), "warnings": (), "neighbours": ()},
    )
    choices = {"detector": {"name": "a random network"}, "protocol": "stylegan-v", "date": "2026-11-26T10:00:00"}
    record = tmp_path / "fvd.json"
    write_json(record, record_of({"random Frechet16": result}, None, choices))
    push(MOTION, "owner/world", "--measured", record, "--dry-run", tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert (
        "| random Frechet16 | 0.25 | 0.01414 | 0.02 | 64 generated, 256 real videos, 16 frames of 32x48 | says " in page
    )
    assert "| random Frechet16 kernel | 0.001 |  |  | 64 generated, 256 real videos, 16 frames of 32x48 | says " in page
    assert "a random network. Protocol stylegan-v, 2026-11-26." in page
    assert "content" not in page.split("## Use")[1].split("## Settings")[0].replace("--content first.png", "")


def test_what_was_pushed_loads_by_name(hub, push, tmp_path, monkeypatch, capsys):
    states, small = {}, {"image_size": 16, "flow_range": "none"}  # without SPyNet's weights
    for generator in ("motion", "content"):
        config = Config.from_preset("tiny").replaced({**small, "generator": generator})
        states[generator] = build_model(config).state_dict()
        save_checkpoint(tmp_path / f"{generator}.pt", Checkpoint(7, config, states[generator], states[generator], {}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(tmp_path / "motion.pt", "owner/mine", "--content", tmp_path / "content.pt")
    assert capsys.readouterr().out == f"uploaded {hub.base}/owner/mine/commit/{commit_id(0)}\n"
    assert hub.repositories["owner/mine"][0].keys() == FILES.keys()
    for generator, state in states.items():
        assert same(load_any("hf:owner/mine", generator=generator).ema_state_dict, state)


def test_a_dry_run_takes_a_card_and_rounds_weights(push, tmp_path, monkeypatch):
    config = Config.from_preset("tiny").replaced({"image_size": 16, "flow_range": "none"})
    state = build_model(config).state_dict()
    save_checkpoint(tmp_path / "motion.pt", Checkpoint(7, config, state, state, {}))
    push(tmp_path / "motion.pt", "owner/mine", "--half", "--card", WORLD / "README.md", "--dry-run", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_bytes() == FILES["README.md"]
    half = load_any(tmp_path / "out" / "motion.safetensors").ema_state_dict
    assert same(half, {name: tensor.half().float() for name, tensor in state.items()})


@pytest.mark.slow
def test_videos_sampled_by_name_are_those_of_the_file(hub, tmp_path):
    names = {"by-name": (NAME, NAME), "from-file": (str(MOTION), str(WORLD / "content.safetensors"))}
    for out, (motion, content) in names.items():
        flags = ["--out", str(tmp_path / out), "-ns", "1", "--steps", "2", "--format", "npy"]
        train_main(["--test", "--resume", motion, "--content-resume", content, *flags])
    (one, two) = ((tmp_path / out / "video_00000.npy").read_bytes() for out in names)
    assert one == two
    record = json.loads((tmp_path / "by-name" / "video_00000.json").read_text())
    assert f"models--owner--world/snapshots/{commit_id(0)}/motion.safetensors" in record["checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        ([MOTION, "world"], as_is, "world: give the repository as owner/name"),
        ([MOTION, "owner/world", "--card", "x.md", "--license", "mit"], as_is, "--card is the whole page"),
        ([WORLD / "content.safetensors", "owner/world"], as_is, "is a content generator, and a motion generator is"),
        ([MOTION, "owner/world"], as_is, "owner/world was not uploaded to BASE: "),
        ([MOTION, "owner/world"], without_network, "owner/world was not uploaded to http://127.0.0.1:9: "),
        ([MOTION, "owner/world"], without_library, "uploading to owner/world needs huggingface_hub: pip install"),
        ([MOTION, "owner/world", "--measured", "other.jsonl"], as_is, "other.jsonl has no row of these weights"),
        ([MOTION, "owner/world", "--measured", "other.json"], as_is, "other.json is not a record of evaluate_FVD.py"),
    ],
)
def test_what_goes_wrong_with_a_push_is_one_line(hub, push, tmp_path, monkeypatch, capfd, arguments, change, message):
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text(json.dumps({"row": "world", "seed": 0, "weights": "0" * 64}) + "\n")
    Path("other.json").write_text("{}")
    change(hub, monkeypatch)
    with pytest.raises(SystemExit) as exited:
        push(*arguments)
    assert exited.value.code == 2
    output = capfd.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert message.replace("BASE", hub.base) in line
    assert hub.repositories["owner/world"] == [FILES | OTHERS]
