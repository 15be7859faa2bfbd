"""Tests of the HTML report in a real browser: the videos play in sync, nothing is fetched, nothing is logged.

They need `chromium` on PATH (Debian package chromium) and are skipped without it. Commands and events go through pipes.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidm
from vidm.report import Distance, Report, VideoRow, write_report
from vidm.video_io import write_video

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")


class Browser:
    """Headless Chromium, controlled with its DevTools protocol. Collects the events that arrive between answers."""

    def __init__(self, profile: Path) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        assert CHROMIUM is not None

        def connect_pipes() -> None:  # the browser reads from 3 and writes to 4
            ends = os.dup(read_commands), os.dup(write_answers)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"], preexec_fn=connect_pipes, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(read_commands)
        os.close(write_answers)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number, self._session = b"", 0, ""
        (page,) = (t for t in self.command("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.command("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                chunk = os.read(self._answers, 1 << 16)
                assert chunk, "the browser has exited"
                self._buffer += chunk
            line, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"still false: {expression}"
            time.sleep(0.05)

    def open(self, page: Path) -> None:
        self.command("Page.navigate", url=page.as_uri())
        self.wait_until(f"document.readyState === 'complete' && location.href === {json.dumps(page.as_uri())}")

    def press_space(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=" ", code="Space", text=" " * (kind == "keyDown"))

    def screenshot(self, width: int, height: int) -> np.ndarray:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        data = base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.process.kill()
    browser.process.wait()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Three rows of videos of a moving red, green and blue square, with different lengths and one odd size."""
    rows = []
    for number, colour in enumerate([(220, 30, 30), (30, 200, 30), (30, 30, 220)]):
        media = [tmp_path / f"{number}.png"]
        for column, (num_frames, size) in enumerate([(12, 32), (18, 33)]):
            frames = np.full((num_frames, size, size, 3), 110, np.uint8)
            for t, frame in enumerate(frames):
                frame[8:24, t : t + 8] = colour
            media.append(tmp_path / f"{number}-{column}.mp4")
            write_video(media[-1], frames, fps=12)
        Image.fromarray(frames[0]).save(media[0])
        rows.append(VideoRow(f"video {number}, seed 0", media))
    report = Report(
        "Squares",
        "Three squares that move.",
        ["first frame", "generated", "ground truth"],
        rows,
        "distance",
        [Distance("real", 0.5, floor=True), Distance("generated", 2.0)],
        settings={"steps": 20},
        curves={"distance within windows": (0.5, 1.0, 2.0)},
    )
    write_report(tmp_path / "report.html", report)
    return tmp_path / "report.html"


VIDEOS = "[...document.querySelectorAll('video')]"


def test_every_video_plays_and_nothing_is_fetched_or_logged(browser: Browser, page: Path) -> None:
    browser.events.clear()
    browser.open(page)
    assert browser.evaluate(f"{VIDEOS}.length") == 6
    browser.wait_until(f"{VIDEOS}.every(v => v.readyState >= 3 && v.videoWidth > 0 && !v.error)")
    browser.wait_until(f"{VIDEOS}.every(v => v.played.length && v.played.end(0) > 0.5)")
    requested = [
        e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in requested if not url.startswith("data:")] == [page.as_uri()]
    problems = [
        event
        for event in browser.events
        if event.get("method") == "Runtime.exceptionThrown"
        or (event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
        or (event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
    ]
    assert problems == []


def test_videos_restart_together_when_the_longest_has_ended(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait_until(f"{VIDEOS}.every(v => v.ended)")
    browser.wait_until(f"{VIDEOS}.every(v => !v.ended && !v.paused && v.currentTime < 0.9)")
    times = browser.evaluate(f"{VIDEOS}.map(v => v.currentTime)")
    assert max(times) - min(times) < 0.2


def test_space_pauses_and_resumes_all_videos(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait_until(f"{VIDEOS}.every(v => v.currentTime > 0.1 && !v.paused)")
    browser.press_space()
    browser.wait_until(f"{VIDEOS}.every(v => v.paused)")
    assert browser.evaluate("document.querySelector('button').textContent") == "Play"
    stopped = browser.evaluate(f"{VIDEOS}.map(v => v.currentTime)")
    time.sleep(0.3)
    assert browser.evaluate(f"{VIDEOS}.map(v => v.currentTime)") == stopped
    browser.press_space()
    browser.wait_until(f"{VIDEOS}.some(v => !v.paused)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_screenshot_shows_every_video_in_both_colour_schemes(browser: Browser, page: Path, scheme: str) -> None:
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    browser.wait_until(f"{VIDEOS}.every(v => v.currentTime > 0.3)")
    seen = browser.screenshot(1000, 1600).astype(int)
    assert (seen[2, 2].mean() > 200) == (scheme == "light")
    for channel in range(3):
        others = [other for other in range(3) if other != channel]
        square = (seen[..., channel] > 150) & (seen[..., others].max(axis=2) < 90)
        assert square.sum() > 1000, "one coloured square for each row, in its videos and its image"
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_fits_the_screen_of_a_phone(browser: Browser, page: Path) -> None:
    browser.command("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("format", ["gif", "mp4"])
def test_videos_of_a_notebook_play_side_by_side_in_an_exported_page(
    browser: Browser, tmp_path: Path, format: str
) -> None:
    frames = np.full((8, 32, 32, 3), 110, np.uint8)
    for t, frame in enumerate(frames):
        frame[8:24, 2 * t : 2 * t + 8] = (220, 30, 30)
    exported = tmp_path / "exported.html"
    exported.write_text(f"<!DOCTYPE html>{vidm.show({'a': frames, 'b': frames}, format=format).html}")
    browser.command("Emulation.setDeviceMetricsOverride", width=600, height=400, deviceScaleFactor=1, mobile=False)
    browser.open(exported)
    shown = "[...document.querySelectorAll('img, video')]"
    browser.wait_until(f"{shown}.every(e => e.naturalWidth === 32 || e.played?.length && e.played.end(0) > 0.3)")
    boxes = browser.evaluate(
        f"{shown}.map(e => {{ const b = e.getBoundingClientRect(); return [b.x, b.y, b.width]; }})"
    )
    assert boxes[0][1] == boxes[1][1]
    assert boxes[0][0] + 128 < boxes[1][0]
    assert [box[2] for box in boxes] == [128, 128]
