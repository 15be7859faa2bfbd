"""Networks that turn videos into features or class probabilities, and the protocols by which they are called.

A protocol is the set of choices that makes published FVDs differ: the detector's input, the choice of clips and the
divisor of the covariance. A detector is the I3D of published FVD numbers or the C3D of the video inception
score (TorchScript files of StyleGAN-V, Skorokhodov et al. 2022), a small random network of ours that needs no file, or
any Python callable with the I3D's signature, detector(video, rescale, resize, return_features): `rescale` maps
0 .. 255 to [-1, 1], `resize` resizes frames to 224 x 224.

A TorchScript file is a program that can write any file. It is loaded only if the user names it, or if
scripts/download_models.sh downloaded it to the checkout's pretrained_models.

    detector = load_detector("random", "cpu")
    features = features_of(detector, clips_u8, PROTOCOLS["stylegan-v"], "cpu")     # (B, T, H, W, 3) uint8 -> (B, 128)
"""

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidm.distributed import is_main
from vidm.files import has_wrong_checksum, sha256_of
from vidm.runtime import autocast, is_out_of_memory
from vidm.tensor_file import wrong_download

# The folder of a checkout; an installed package has none.
PRETRAINED = Path(__file__).parent.parent / "pretrained_models"
# Lines of sha256 and name, written by scripts/download_models.sh.
RECORD = "downloads.sha256"
I3D_NAME = "i3d_torchscript.pt"
I3D_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
I3D_SIZE = 224
C3D_NAME = "c3d_ucf101.pt"
C3D_URL = "https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1"

# detector(video, **switches) -> (B, d), where a protocol prepares `video` from uint8 (B, 3, T, H, W). It may have a
# `name` and a `label` to print with its numbers, and a `sha256` that identifies its features in a cache.
Detector = Callable[..., Tensor]


# Protocols


@dataclass(frozen=True)
class Protocol:
    """`prepare` turns uint8 (B, 3, T, H, W) into the detector's input; `switches` are its keyword arguments.

    The covariance is divided by n - `ddof`. With `random_start` the clip of a real video begins at a random frame drawn
    by the seed, else at the first. At most `max_videos` of each folder are measured unless a number is given.
    """

    name: str
    prepare: Callable[[Tensor], Tensor]
    switches: Mapping[str, bool]
    ddof: int
    random_start: bool
    max_videos: int = 2048


def _as_stored(clips: Tensor) -> Tensor:
    return clips


def _unit_range(clips: Tensor) -> Tensor:
    return clips.float() / 255


def _i3d_frames(clips: Tensor) -> Tensor:
    """Resize the short side to 224, bilinear without antialiasing, and crop: float32 (B, 3, T, 224, 224) in [-1, 1]."""
    batch, _, num_frames, height, width = clips.shape
    scale = I3D_SIZE / min(height, width)
    new_height, new_width = max(round(height * scale), I3D_SIZE), max(round(width * scale), I3D_SIZE)
    frames = clips.float().div(127.5).sub(1).transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (new_height, new_width), mode="bilinear", align_corners=False)
    top, left = (new_height - I3D_SIZE) // 2, (new_width - I3D_SIZE) // 2
    square = frames[..., top : top + I3D_SIZE, left : left + I3D_SIZE]
    return square.unflatten(0, (batch, num_frames)).transpose(1, 2)


def _switches(rescale: bool, resize: bool) -> dict[str, bool]:
    return {"rescale": rescale, "resize": resize, "return_features": True}


STYLEGAN_V = Protocol("stylegan-v", _as_stored, _switches(rescale=True, resize=True), ddof=0, random_start=True)
VIDM_RELEASED = Protocol(
    "vidm-released", _unit_range, _switches(rescale=False, resize=True), ddof=1, random_start=False
)
VIDEOGPT = Protocol("videogpt", _i3d_frames, _switches(rescale=False, resize=False), ddof=1, random_start=False)
# StyleGAN-V's inception score: the C3D takes uint8 frames and no switches, and returns class probabilities.
C3D = Protocol("c3d", _as_stored, {}, ddof=0, random_start=False)

PROTOCOLS = {protocol.name: protocol for protocol in (STYLEGAN_V, VIDM_RELEASED, VIDEOGPT)}


def protocol_named(protocol: Protocol | str) -> Protocol:
    """The protocol, or the one of this name. Raises ValueError, with the names that exist."""
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol] if isinstance(protocol, str) else protocol


# Detectors


@cache
def _print_once(line: str) -> None:
    if is_main():
        print(line, file=sys.stderr)


class _TorchScript:
    """A network from a file, called with the protocol's switches; `needs` says in errors how many frames it needs."""

    label = "FVD"

    def __init__(self, path: Path, flag: str, url: str, name: str, needs: str, device: torch.device | str) -> None:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give a file in it")
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}: check the path, or use the random detector: {flag} random")
        self.sha256 = sha256_of([path])
        if wrong := wrong_download(path):
            raise ValueError(f"{path} {wrong} (from {url})")
        what = "is a program, which can do what you can: use it only if you trust its source"
        _print_once(f"{path} (sha256 {self.sha256}) {what}")
        try:
            if has_wrong_checksum(path):
                raise ValueError("a checksum does not match")
            with warnings.catch_warnings():
                # torch.jit.load is deprecated, but only it reads the files behind published numbers.
                warnings.filterwarnings("ignore", message=".*torch.jit.load.*deprecated", category=Warning)
                self._network = torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:  # damaged files raise errors of many types
            raise ValueError(f"{path} is damaged or not a TorchScript file; download it again from {url}") from error
        self.name = name
        self._path, self._needs = path, needs

    @torch.no_grad()
    def __call__(self, video: Tensor, **switches: bool) -> Tensor:
        try:
            return self._network(video, **switches)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # TorchScript prints its own traceback first; the reason is the last line.
            reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
            raise ValueError(
                f"{self._path} failed on clips of {video.shape[2]} frames ({self._needs}): {reason}"
            ) from error


class _RandomNetwork:
    """Three strided 3-D convolutions with fixed random weights, on frames of 64 x 64 pixels (ours).

    The input is each frame concatenated with its change to the next, so that static clips are far from moving ones.
    Means and deviations of every layer measure texture and speed; the quadrants of the last layer measure the layout.
    """

    SIZE = 64
    WIDTHS = (6, 8, 16, 16)
    # Differences of neighbouring frames are much smaller than pixel values.
    CHANGE_GAIN = 4.0
    # With this gain, two sets of similar videos have a distance of about 0.5, videos and noise one of some hundreds.
    FEATURE_GAIN = 4.0
    NUM_FEATURES = 128

    label = "random Frechet"

    def __init__(self, device: torch.device | str) -> None:
        self.name = "random-feature Frechet distance: not an FVD, not comparable with published numbers"
        generator = torch.Generator().manual_seed(0)
        self._layers = []
        for width_in, width in pairwise(self.WIDTHS):
            gain = math.sqrt(2 / (27 * width_in))
            weight = gain * torch.randn(width, width_in, 3, 3, 3, generator=generator)
            bias = 0.1 * torch.randn(width, generator=generator)
            self._layers.append((weight.to(device), bias.to(device)))
        content = [f"{self.SIZE} {self.CHANGE_GAIN} {self.FEATURE_GAIN}".encode()]
        content += [tensor.cpu().numpy().tobytes() for layer in self._layers for tensor in layer]
        self.sha256 = hashlib.sha256(b"".join(content)).hexdigest()

    def _features(self, clip: Tensor) -> Tensor:
        """Return the features (NUM_FEATURES,) of a clip, float (3, T, H, W) in [-1, 1] or [0, 1]."""
        frames = clip.transpose(0, 1)
        frames = F.interpolate(frames, size=(self.SIZE, self.SIZE), mode="bilinear", antialias=True)
        x = torch.cat([frames[:-1], self.CHANGE_GAIN * frames.diff(dim=0)], dim=1).transpose(0, 1)[None]
        parts = []
        for depth, (weight, bias) in enumerate(self._layers):
            x = F.relu(F.conv3d(x, weight, bias, stride=(1 if depth == 0 else 2, 2, 2), padding=1))
            mean = x.mean(dim=(2, 3, 4))
            parts += [mean, (x - mean[..., None, None, None]).square().mean(dim=(2, 3, 4)).sqrt()]
        parts[-2] = F.adaptive_avg_pool3d(x, (1, 2, 2)).flatten(1)
        return self.FEATURE_GAIN * torch.cat(parts, dim=1)[0]

    @torch.no_grad()
    def __call__(
        self, video: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> Tensor:
        """Called like the I3D, but frames are always resized to 64 x 64, and uint8 is always rescaled."""
        _, _, T, H, W = video.shape
        if T < 2 or min(H, W) < 16:
            raise ValueError(
                f"clips have {T} frame(s) of {H}x{W} pixels (height x width); the random detector needs 2 frames (-n) "
                "of 16 x 16 (-r) or more"
            )
        rescale = rescale or video.dtype == torch.uint8
        # One clip at a time, so that memory does not grow with the batch and clips do not affect each other.
        clips = (clip.float() / 127.5 - 1 if rescale else clip for clip in video)
        return torch.stack([self._features(clip) for clip in clips])


def _downloaded(name: str, flag: str) -> Path | None:
    """The file of that name in the checkout, if our script downloaded it; another file is named in a warning."""
    path, record = PRETRAINED / name, PRETRAINED / RECORD
    if not path.is_file():
        return None
    if record.is_file() and f"{sha256_of([path])}  {name}" in record.read_text("utf-8", "replace").splitlines():
        return path
    reason = "is not used, because scripts/download_models.sh did not download it"
    _print_once(f"{path} {reason}: if you trust it, give {flag} {path}")
    return None


NUM_RANDOM_FEATURES = _RandomNetwork.NUM_FEATURES


def load_detector(path: Path | str | None = None, device: torch.device | str = "cpu") -> Detector:
    """Load the detector of a TorchScript I3D file, or create the random one, on the device.

    path: a file, which is a program and must be trusted; "random"; or None for the I3D that scripts/download_models.sh
    downloaded to the checkout, if any, else the random one. Raises FileNotFoundError for a missing file and ValueError
    for a file that is not TorchScript.
    """
    if path is None:
        path = _downloaded(I3D_NAME, "-i3d") or "random"
    if path == "random":
        return _RandomNetwork(device)
    path = Path(path)
    return _TorchScript(path, "-i3d", I3D_URL, f"FVD (I3D {path.name})", "the I3D needs about 10", device)


def load_classifier(path: Path | str | None = None, device: torch.device | str = "cpu") -> Detector:
    """Load the C3D of the video inception score, or the random network instead; `path` is as in load_detector."""
    if path is None:
        path = _downloaded(C3D_NAME, "-c3d") or "random"
    if path == "random":
        network = _RandomNetwork(device)
        network.name = "score of random classes: not a video inception score, not comparable with published numbers"
        network.label = "random score"
        return network
    path = Path(path)
    name = f"video inception score (C3D {path.name})"
    classifier = _TorchScript(path, "-c3d", C3D_URL, name, "the C3D needs 16", device)
    classifier.label = "VIS"
    return classifier


def name_of(detector: Detector) -> str:
    """Return the name to print with a detector's numbers: its `name`, else that of the function or class."""
    return getattr(detector, "name", getattr(detector, "__name__", type(detector).__name__))


def label_of(detector: Detector) -> str:
    """Return what a number by a detector is called in tables and records: FVD only by an I3D, VIS by a C3D. Ours."""
    return getattr(detector, "label", "Frechet")


def identity_of(detector: Detector) -> dict[str, str | None]:
    """Return a detector's entry in a record: {"name": ..., "sha256": ...}; the sha256 is None if unknown."""
    return {"name": name_of(detector), "sha256": getattr(detector, "sha256", None)}


@torch.no_grad()
def features_of(
    detector: Detector, clips_u8: np.ndarray | Tensor, protocol: Protocol, device: torch.device | str
) -> Tensor:
    """Return the features (B, d) of clips uint8 (B, T, H, W, 3), on the device.

    Raises ValueError for clips of another type or shape, for clips that the network cannot take, and for an output
    that is not (B, d).
    """
    clips = torch.as_tensor(clips_u8)
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(f"clips are {clips.dtype} of shape {tuple(clips.shape)}, not uint8 (B, T, H, W, 3)")
    if torch.device(device).type == "cuda":
        clips = clips.pin_memory()
    # Bytes are copied to the device, because floats would be 4 times the traffic.
    video = clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)
    # TF32 would make a GPU's numbers differ from a CPU's.
    with autocast(torch.device(device), "fp32"):
        features = detector(protocol.prepare(video), **protocol.switches)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(video):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{name_of(detector)} returned {found} for {len(video)} clips, not features ({len(video)}, d); "
            f"use the I3D from {I3D_URL}, or the C3D from {C3D_URL} for the inception score"
        )
    return features
