"""The training and held-out videos of a run, and the order of its samples.

data = TrainingData(config)
for batch in data.batches(start_step=0, pin_memory=False): ...
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from vidm.config import Config
from vidm.console import short
from vidm.datasets import FrameTriplets, ResumableSampler, SingleFrames, class_of_each, window_length
from vidm.distributed import is_main, rank, world_size
from vidm.layouts import ClipIndex, index_clips
from vidm.loading import Batch, Keys, load_batches
from vidm.segments import whole_path

# A folder of CLEVRER and of the embedded world: a range of numbers, which is no class.
NUMBERED = re.compile(r"video_\d+-\d+")
# The number of training videos that validation uses if no videos are held out.
NUM_SHARED = 16


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of the indices 0 .. total - 1, each from the middle of one of `count` equal intervals. Ours."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def hold_out(index: ClipIndex, count: int) -> tuple[ClipIndex, ClipIndex]:
    """Split an index into training videos and held-out videos: evenly spaced ones, at most a tenth.

    The clips of one video are all on the same side. If `count` is 0, or with fewer than ten videos, nothing is held
    out: the second part is some training videos. Ours.
    """
    clips_of: dict[Path, list[int]] = defaultdict(list)
    for place, path in enumerate(index.paths):
        clips_of[whole_path(path)].append(place)
    videos = list(clips_of.values())
    chosen = [place for i in evenly_spaced(len(videos), min(count, len(videos) // 10)) for place in videos[i]]
    if not chosen:
        return index, index.at(evenly_spaced(len(index.paths), min(NUM_SHARED, len(index.paths))))
    held_out = [chosen[i] for i in evenly_spaced(len(chosen), min(count, len(chosen)))]
    return index.at(sorted(set(range(len(index.paths))) - set(chosen))), index.at(held_out)


class TrainingData:
    """The videos of a configuration, `index` for training and `held_out` for validation, and the stream of samples.

    `config` has the names of the classes: those of the given configuration, or else those found in the data.
    Raises ValueError or FileNotFoundError for data that cannot be used; the list of bad videos in the run's folder is
    then the only file that may have been written.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.is_motion = config.model.generator == "motion"
        found, count = self._indexed(config.data.split), config.data.held_out
        if config.data.test_split:
            try:
                test = self._indexed(config.data.test_split)
            except ValueError as error:
                raise ValueError(str(error).replace("--split", "--test-split")) from error
            places = evenly_spaced(len(test.paths), min(count, len(test.paths)))
            self.index, self.held_out = found, test.at(places)
        else:
            self.index, self.held_out = hold_out(found, count)
        if config.train.eval_freq and len(self.held_out.paths) < max(2, world_size()):
            raise ValueError(
                f"--eval-freq: {len(self.held_out.paths)} held-out video(s) are too few for a distance; give more "
                "--data or a --test-split"
            )
        if config.data.classes:
            names = config.model.class_names or tuple(sorted(set(class_of_each(found))))
            for index in (found, self.held_out):
                self._check_classes(index, names)
            self.config = config.replaced({"class_names": names})

    def _indexed(self, split: str) -> ClipIndex:
        data = self.config.data
        return index_clips(
            data.data,
            min_frames=window_length(self.config.model.video_timesteps, data.frame_stride) if self.is_motion else 1,
            layout=data.layout,
            split=split,
            max_bad_fraction=data.max_bad_fraction,
            bad_list=Path(self.config.train.out) / "bad_videos.txt",
            progress=is_main(),
        )

    def _check_classes(self, index: ClipIndex, names: Sequence[str]) -> None:
        """Raise ValueError unless there are two classes or more, and each clip has one: of a csv list or its folder."""
        data = self.config.data
        outside = {index.root / split for split in ("", data.split, data.test_split)}
        folders = (path for path in index.paths if not index.classes)
        if loose := next((p for p in folders if p.parent in outside or NUMBERED.fullmatch(p.parent.name)), None):
            raise ValueError(
                f"--classes: {loose} is not in the folder of a class; move each clip to a folder with the name of its "
                "class, list the clips in a csv file with a column class, or leave the flag out"
            )
        if len(names) < 2:
            raise ValueError(f"--classes: all clips of {index.root} are of one class, {short(names[0])}: omit the flag")
        if unknown := set(class_of_each(index)) - set(names):
            raise ValueError(
                f"--classes: {index.root} has the class {short(min(unknown))}, which this run does not have: "
                f"{short(', '.join(names))}"
            )

    def samples(self, index: ClipIndex, seed: int, flip: bool) -> FrameTriplets | SingleFrames:
        """The training samples of an index's videos, keyed by (epoch, index)."""
        model, data = self.config.model, self.config.data
        numbers = {name: 1 + i for i, name in enumerate(model.class_names)}
        labels = {"class_index": torch.tensor([numbers[name] for name in class_of_each(index)])} if numbers else {}
        if self.is_motion:
            length, stride = model.video_timesteps, data.frame_stride
            return FrameTriplets(index, model.image_size, length, seed, flip, stride, labels, data.fit)
        anywhere = data.content_frames == "all"
        return SingleFrames(index, model.image_size, seed, anywhere, flip, labels, data.fit)

    def _sampler(self, start_step: int) -> ResumableSampler:
        train = self.config.train
        return ResumableSampler(
            num_samples=len(self.index.paths),
            batch_size=train.batch_size,
            rank=rank(),
            world_size=world_size(),
            accum_steps=train.accum_steps,
            seed=train.seed,
            start_step=start_step,
            num_steps=train.total_iters - start_step,
        )

    def batches(self, start_step: int, pin_memory: bool) -> Iterator[Batch]:
        """This process's micro-batches, in order, from `start_step` to the last step."""
        train = self.config.train

        def keys_from(done: int) -> Keys:
            steps, micro_batches = divmod(done, train.accum_steps)
            return islice(self._sampler(start_step + steps), micro_batches, None)

        samples = self.samples(self.index, train.seed, self.config.data.flip)
        # With fewer workers than processes, each still has one: only --workers 0 loads in the process itself.
        workers = min(train.workers, max(train.workers // world_size(), 1), os.cpu_count() or 1)
        return load_batches(samples, keys_from, workers, pin_memory)

    def videos_of_step(self, step: int) -> list[Path]:
        """The videos of a step's global batch, in order of their places in it."""
        return [self.index.paths[index] for _, index in self._sampler(step).global_batch(step)]
