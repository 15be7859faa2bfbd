"""VIDM: video implicit diffusion models.

    import vidm
    video = vidm.load_generator("checkpoints/checkpoint_00000600.pt").animate(first_frame, num_frames=16)

The names below are loaded when first used, so that a script which needs no network does not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CollisionWorld": "world",
    "FrameTriplets": "datasets",
    "GaussianDiffusion": "diffusion",
    "MotionGenerator": "model",
    "PositionalGroupNorm": "posgn",
    "SPyNet": "spynet",
    "Trainer": "trainer",
    "animate": "rollout",
    "compute_fvd": "metrics",
    "compute_vis": "metrics",
    "frechet_distance": "frechet",
    "load_generator": "generator",
    "sample_ddim": "samplers",
    "sample_ddpm": "samplers",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vidm' has no attribute {name!r}")
    return getattr(import_module(f"vidm.{_HOME[name]}"), name)
