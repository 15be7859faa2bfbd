"""VIDM: video implicit diffusion models.

    import vidm
    video = vidm.load_generator("checkpoints/checkpoint_00000600.pt").animate(first_frame, num_frames=16)

The names below are imported when they are first used, so that `import vidm` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidm.config import Config as Config
    from vidm.datasets import FrameTriplets as FrameTriplets
    from vidm.diffusion import GaussianDiffusion as GaussianDiffusion
    from vidm.frechet import frechet_distance as frechet_distance
    from vidm.generator import Generator as Generator
    from vidm.generator import load_generator as load_generator
    from vidm.layouts import index_clips as index_clips
    from vidm.metrics import compute_fvd as compute_fvd
    from vidm.metrics import compute_vis as compute_vis
    from vidm.model import ContentGenerator as ContentGenerator
    from vidm.model import MotionGenerator as MotionGenerator
    from vidm.notebook import show as show
    from vidm.posgn import PositionalGroupNorm as PositionalGroupNorm
    from vidm.sample_config import SampleConfig as SampleConfig
    from vidm.samplers import sample_ddim as sample_ddim
    from vidm.samplers import sample_ddpm as sample_ddpm
    from vidm.samplers import sample_dpm_solver as sample_dpm_solver
    from vidm.sampling import sample_folder as sample_folder
    from vidm.spynet import SPyNet as SPyNet
    from vidm.trainer import Trainer as Trainer
    from vidm.video_io import write_video as write_video
    from vidm.world import CollisionWorld as CollisionWorld

# The package's version; pyproject.toml reads it here.
__version__ = "0.1.0"

_MODULES = {
    "CollisionWorld": "world",
    "Config": "config",
    "ContentGenerator": "model",
    "FrameTriplets": "datasets",
    "GaussianDiffusion": "diffusion",
    "Generator": "generator",
    "MotionGenerator": "model",
    "PositionalGroupNorm": "posgn",
    "SPyNet": "spynet",
    "SampleConfig": "sample_config",
    "Trainer": "trainer",
    "compute_fvd": "metrics",
    "compute_vis": "metrics",
    "frechet_distance": "frechet",
    "index_clips": "layouts",
    "load_generator": "generator",
    "sample_ddim": "samplers",
    "sample_ddpm": "samplers",
    "sample_dpm_solver": "samplers",
    "sample_folder": "sampling",
    "show": "notebook",
    "write_video": "video_io",
}
__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "animate":
        raise AttributeError(
            "vidm.animate is gone: use Generator.animate, as in vidm.load_generator(path).animate(...)"
        )
    if name not in _MODULES:
        raise AttributeError(f"module 'vidm' has no attribute {name!r}")
    return getattr(import_module(f"vidm.{_MODULES[name]}"), name)
