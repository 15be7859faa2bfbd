"""uint8 clips in, the protocol's preparation inside, features out.

Two detectors: the I3D that published FVD numbers are made with (the TorchScript file of StyleGAN-V,
Skorokhodov et al. 2022, which resizes to 224 x 224 and rescales by itself), and a small random network of our
own that needs no file.

    detector = load_detector("random", "cpu")
    features = detector(clips_u8)     # (B, T, H, W, 3) uint8 -> (B, 128)
"""

import math
import warnings
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

I3D_PATH = Path("pretrained_models/i3d_torchscript.pt")
I3D_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"


class Detector(Protocol):
    """Turns clips (B, T, H, W, 3) uint8 into features (B, d), and has a name to show beside the number."""

    name: str

    def __call__(self, clips_u8: np.ndarray | torch.Tensor) -> torch.Tensor: ...


def _channels_first(clips_u8: np.ndarray | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) -> uint8 (B, 3, T, H, W) on the device: floats would be 4 times the traffic."""
    clips = torch.as_tensor(clips_u8)
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(
            f"clips are {clips.dtype} of shape {tuple(clips.shape)}; a detector takes uint8 (B, T, H, W, 3)"
        )
    return clips.to(device).permute(0, 4, 1, 2, 3)


def _exact_convolutions() -> AbstractContextManager[None]:
    """Without TF32, whose 10-bit products would set the numbers of a GPU apart from those of a CPU."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class _I3D:
    def __init__(self, path: Path, device: torch.device | str) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there; download the I3D of StyleGAN-V from {I3D_URL} to that place, "
                "or ask for the random detector"
            )
        try:
            with warnings.catch_warnings():
                # Deprecated in recent torch, and the only way to read the file the field's numbers come from.
                warnings.filterwarnings("ignore", message=".*torch.jit.load.*deprecated", category=Warning)
                network = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a TorchScript file; download it again from {I3D_URL}") from error
        self.name = f"FVD (I3D {path.name})"
        self._network = network.eval()
        self._path = path
        self._device = device

    @torch.no_grad()
    def __call__(self, clips_u8: np.ndarray | torch.Tensor) -> torch.Tensor:
        video = _channels_first(clips_u8, self._device).float()
        try:
            with _exact_convolutions():
                features = self._network(video, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            # TorchScript prints its own traceback first; the reason is the last line.
            reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
            raise ValueError(
                f"{self._path} failed on clips of {video.shape[2]} frames (the I3D needs about 10): {reason}"
            ) from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(video):
            found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(
                f"{self._path} returned {found} for {len(video)} clips, not features ({len(video)}, d); "
                f"use the I3D from {I3D_URL}"
            )
        return features.float()


class _RandomNetwork:
    """Three strided 3-D convolutions with fixed random weights, seen at 64 x 64 pixels (ours).

    The input is each frame beside its change to the next, so a clip that stands still is far from one that
    moves; means and deviations of every layer give texture and speed, the last one's quadrants the layout.
    """

    SIZE = 64
    WIDTHS = (6, 8, 16, 16)
    # Neighbouring frames differ far less than pixels do.
    CHANGE_GAIN = 4.0
    # Two draws of one kind of video are then about 0.5 apart, videos and noise some hundreds.
    FEATURE_GAIN = 4.0

    def __init__(self, device: torch.device | str) -> None:
        self.name = "random-feature Frechet distance: not an FVD, not comparable with published numbers"
        self._device = device
        generator = torch.Generator().manual_seed(0)
        self._layers = []
        for width_in, width in pairwise(self.WIDTHS):
            gain = math.sqrt(2 / (27 * width_in))
            weight = gain * torch.randn(width, width_in, 3, 3, 3, generator=generator)
            bias = 0.1 * torch.randn(width, generator=generator)
            self._layers.append((weight.to(device), bias.to(device)))

    def _features(self, clip: torch.Tensor) -> torch.Tensor:
        """uint8 (3, T, H, W) -> (128,)."""
        frames = clip.transpose(0, 1).float() / 127.5 - 1
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
    def __call__(self, clips_u8: np.ndarray | torch.Tensor) -> torch.Tensor:
        clips = _channels_first(clips_u8, self._device)
        _, _, T, H, W = clips.shape
        if T < 2 or min(H, W) < 16:
            raise ValueError(
                f"clips have {T} frame(s) of {W} x {H} pixels; the random detector needs 2, 16 x 16 or larger"
            )
        # One at a time: memory does not grow with the batch, and no clip's features depend on its neighbours.
        with _exact_convolutions():
            return torch.stack([self._features(clip) for clip in clips])


def load_detector(path: Path | str | None = None, device: torch.device | str = "cpu") -> Detector:
    """The detector from a TorchScript I3D file, or the random one, ready on the device.

    path: a file; "random"; or None for pretrained_models/i3d_torchscript.pt below the working folder if it is
    there and else the random one. The detector takes uint8 (B, T, H, W, 3), tensor or array, and returns
    float32 (B, d) on the device; its .name says which it is and belongs beside every number made with it.
    Raises FileNotFoundError for a path that is not there and ValueError for a file that is no TorchScript; a
    call raises ValueError for what is no uint8 clip, clips the network cannot take, or an output not (B, d).
    """
    if path is None:
        path = I3D_PATH if I3D_PATH.is_file() else "random"
    if path == "random":
        return _RandomNetwork(device)
    return _I3D(Path(path), device)
