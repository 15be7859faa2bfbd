"""The class of each video that generators with classes make, and samplers for it. Ours.

names = common_classes(generator.config, generator.content_config)
chosen = class_of(names, index=0, settings=settings, first_frame=Path("data/boxing/clip.mp4"))
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from vidm.config import Config
from vidm.console import short
from vidm.first_frames import FirstFrame
from vidm.layers import to_device
from vidm.rollout import BoundSampler
from vidm.sample_config import SampleConfig
from vidm.samplers import with_classes


def common_classes(*configs: Config | None) -> tuple[str, ...]:
    """The classes that all class-conditional generators have; () if none is conditional.

    Raises ValueError if they have no class in common.
    """
    each = [config.model.class_names for config in configs if config and config.model.class_names]
    common = tuple(name for name in each[0] if all(name in names for names in each)) if each else ()
    if each and not common:
        raise ValueError("the motion generator and the content generator have no class in common")
    return common


def check_class(names: Sequence[str], settings: SampleConfig, path: Path) -> None:
    """Raise ValueError for a class or guidance that the generator of a file, with these classes, cannot follow."""
    name = settings.class_name
    if not names and (name or settings.guidance != 1):
        given = f"--class {short(name)}" if name else f"--guidance {settings.guidance:g}"
        raise ValueError(f"{given}: {path} has no classes; train with --classes")
    if name and name not in names:
        raise ValueError(f"--class {short(name)}: choose from {short(', '.join(names))}")


def class_of(
    names: Sequence[str], index: int, settings: SampleConfig, first_frame: Path | None = None, listed: str = ""
) -> str:
    """The class of video `index`: the one in the settings, or else that of its first frame.

    This is the class `listed` for it in a csv file, or else the folder of its file. Drawn first frames have all classes
    in turn. "" without classes. Raises ValueError if the first frame has no class, or one that is not in `names`.
    """
    if settings.class_name or not names:
        return settings.class_name
    if first_frame is None:
        return names[index % len(names)]
    if (listed or first_frame.parent.name) in names:
        return listed or first_frame.parent.name
    if listed:
        raise ValueError(f"{first_frame} has the class {short(listed)}: give --class, one of {short(', '.join(names))}")
    raise ValueError(f"{first_frame} is not in the folder of a class: give --class, one of {short(', '.join(names))}")


def class_of_given(names: Sequence[str], index: int, settings: SampleConfig, first_frame: FirstFrame) -> list[str]:
    """The class of video `index`, which continues a given first frame; [] without classes."""
    if not names:
        return []
    if isinstance(first_frame, str | Path):
        return [class_of(names, index, settings, Path(first_frame))]
    if not settings.class_name:
        raise ValueError(f"this generator has classes: give class_name, one of {short(', '.join(names))}")
    return [settings.class_name]


def of_classes(
    sampler: BoundSampler, config: Config, classes: Sequence[str], guidance: float, device: torch.device
) -> BoundSampler:
    """The sampler, for videos of these classes if the generator trained with `config` has classes."""
    names = config.model.class_names
    if not names or not classes:
        return sampler
    class_index = to_device(torch.tensor([1 + names.index(name) for name in classes]), device)
    # A class that all videos share is one expanded value, as t and frame_index are (vidm.layers).
    shared = class_index[:1].expand(len(classes)) if len(set(classes)) == 1 else class_index
    return with_classes(sampler, shared, guidance)
