"""Tests of the metrics of folders: values, invariances and errors."""

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.detectors import C3D, PROTOCOLS, STYLEGAN_V, VIDEOGPT, features_of, load_detector
from vidm.frechet import FeatureStats, frechet_distance, frechet_of, inception_score, kernel_distance
from vidm.metrics import compute_fvd, compute_vis
from vidm.result_tables import mark_of
from vidm.video_io import write_video

FROM_THE_START = replace(STYLEGAN_V, random_start=False)


class StubDetector:
    """A detector with five features in float64: brightness, colour balance, motion, a first and a last pixel."""

    name = "stub"
    sha256 = "stub 1"

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
        self.batches.append(tuple(video.shape))
        return torch.stack([self._features(clip.double() / 255) for clip in video])

    @staticmethod
    def _features(clip: torch.Tensor) -> torch.Tensor:
        red, blue = clip[0].mean(), clip[2].mean()
        motion = clip.diff(dim=1).abs().mean()
        return torch.stack([clip.mean(), red - blue, motion, clip[0, 0, 0, 0], clip[0, -1, 0, 0]])


def stub_features(clips: np.ndarray) -> np.ndarray:
    return features_of(StubDetector(), clips, STYLEGAN_V, "cpu").numpy()


def moving_clips(n: int, seed: int, frames: int = 6, size: int = 16) -> np.ndarray:
    """Return random pictures (n, frames, size, size, 3) of 4 x 4 squares that move sideways by a pixel per frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 1, size // 4, size // 4, 3), dtype=np.uint8)
    picture = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return np.concatenate([np.roll(picture, t, axis=3) for t in range(frames)], axis=1)


def write_folder(folder: Path, clips: np.ndarray) -> Path:
    folder.mkdir()
    for i, clip in enumerate(clips):
        write_video(folder / f"{i:03d}.npy", clip)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("videos")
    return (
        write_folder(root / "real", moving_clips(11, seed=0)),
        write_folder(root / "fake", moving_clips(7, seed=1) // 2),
    )


def test_the_value_is_the_frechet_distance_of_all_features_with_covariances_over_n(folders: tuple[Path, Path]) -> None:
    moments = []
    for clips in (moving_clips(11, seed=0), moving_clips(7, seed=1) // 2):
        features = stub_features(clips[:, :4])
        moments += [features.mean(axis=0), np.cov(features.T, ddof=0)]
    result = compute_fvd(*folders, StubDetector(), num_frames=4, protocol=FROM_THE_START)
    assert result.value == pytest.approx(frechet_distance(*moments), rel=1e-9)
    assert (result.name, result.num_samples, result.feature_dim, result.num_frames) == ("stub", (11, 7), 5, 4)
    assert (result.resolution, result.skipped) == (None, ())


def test_a_protocol_may_be_given_by_name(folders: tuple[Path, Path]) -> None:
    named, given = (compute_fvd(*folders, StubDetector(), 4, protocol=each) for each in ("videogpt", VIDEOGPT))
    assert (named.protocol, named.value) == ("videogpt", given.value)
    with pytest.raises(ValueError, match="unknown protocol 'stylegan': choose from stylegan-v, "):
        compute_fvd(*folders, StubDetector(), 4, protocol="stylegan")


def test_the_distance_of_a_folder_to_itself_is_zero_and_to_another_is_not(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The authors' first evaluation script compared real videos with other real ones, so no model could change it."""
    real, fake = folders
    itself, another = (compute_fvd(real, folder, StubDetector(), num_frames=6) for folder in (real, fake))
    assert itself.value < 1e-9
    assert "both folders are" in itself.warnings[-1]
    assert another.value > 0.01
    assert not any("both folders" in warning for warning in another.warnings)
    assert capsys.readouterr().err == ""


def test_the_distance_is_symmetric_in_the_two_folders(folders: tuple[Path, Path]) -> None:
    there = compute_fvd(*folders, StubDetector(), num_frames=6).value
    back = compute_fvd(*folders[::-1], StubDetector(), num_frames=6).value
    assert there == pytest.approx(back, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_the_value_does_not_depend_on_the_batch_size_and_the_last_partial_batch_is_used(
    folders: tuple[Path, Path], batch_size: int
) -> None:
    stub = StubDetector()
    result = compute_fvd(*folders, stub, num_frames=6, batch_size=batch_size)
    assert result.value == pytest.approx(compute_fvd(*folders, StubDetector(), num_frames=6).value, rel=1e-9)
    assert sum(shape[0] for shape in stub.batches) == 11 + 7
    assert max(shape[0] for shape in stub.batches) <= batch_size


def test_with_the_random_detector_the_value_does_not_depend_on_the_batch_size(folders: tuple[Path, Path]) -> None:
    detector = load_detector("random")
    small, large = (compute_fvd(*folders, detector, num_frames=6, batch_size=size) for size in (3, 32))
    assert small.value == pytest.approx(large.value, rel=1e-4)
    assert small.value > 0.1
    assert "not an FVD" in small.name


def test_the_value_does_not_depend_on_file_names_or_workers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(real.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"{i:03d}.npy")
    expected = compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert compute_fvd(renamed, fake, StubDetector(), num_frames=6).value == pytest.approx(expected, rel=1e-9)
    assert compute_fvd(real, fake, StubDetector(), num_frames=6, workers=3).value == expected


def test_videos_and_folders_of_frames_give_the_same_number(folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    frames = tmp_path / "frames"
    for i, clip in enumerate(moving_clips(11, seed=0)):
        write_video(frames / f"{i:03d}", clip)
    expected = compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert compute_fvd(frames, fake, StubDetector(), num_frames=6).value == pytest.approx(expected, rel=1e-9)


def test_only_the_first_frames_of_a_generated_video_are_used(folders: tuple[Path, Path], tmp_path: Path) -> None:
    longer = moving_clips(11, seed=0, frames=9)
    longer[:, 6:] = 0
    result = compute_fvd(folders[0], write_folder(tmp_path / "longer", longer), StubDetector(), num_frames=6)
    assert result.value < 1e-9


def test_videos_of_different_sizes_need_a_resolution(folders: tuple[Path, Path], tmp_path: Path) -> None:
    mixed = write_folder(tmp_path / "mixed", moving_clips(3, seed=2))
    write_video(mixed / "large.npy", moving_clips(1, seed=3, size=32)[0])
    stub = StubDetector()
    compute_fvd(folders[0], mixed, stub, num_frames=6, resolution=8)
    assert {shape[1:] for shape in stub.batches} == {(3, 6, 8, 8)}
    with pytest.raises(
        ValueError, match=r"large\.npy is 32x32 and .*000\.npy is 16x16 \(height x width\); give a resolution"
    ):
        compute_fvd(folders[0], mixed, StubDetector(), num_frames=6)


def test_a_subset_of_samples_is_the_same_each_time_and_not_the_first_by_name(folders: tuple[Path, Path]) -> None:
    one, two = (compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=4) for _ in range(2))
    assert one == two
    assert one.num_samples == (4, 4)
    sides = FeatureStats(), FeatureStats()
    for stats, clips in zip(sides, (moving_clips(11, seed=0)[:4], moving_clips(7, seed=1)[:4] // 2), strict=True):
        stats.update(stub_features(clips))
    assert abs(one.value - frechet_of(*sides)) > 1e-3


def test_more_samples_than_videos_are_an_error_that_names_the_folder(folders: tuple[Path, Path]) -> None:
    with pytest.raises(
        ValueError, match=r"fake has 7 videos of 6 frames or more and 9 are needed: add videos or .*-ns"
    ):
        compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=9)


def test_one_video_or_one_sample_is_too_few(folders: tuple[Path, Path], tmp_path: Path) -> None:
    single = write_folder(tmp_path / "single", moving_clips(1, seed=4))
    with pytest.raises(ValueError, match=r"single has 1 video .* 2 are needed: add videos$"):
        compute_fvd(folders[0], single, StubDetector(), num_frames=6)
    with pytest.raises(ValueError, match="num_samples is 1: a distance needs 2 videos"):
        compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=1)


def test_short_videos_are_reported_and_skipped(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = folders
    mixed = tmp_path / "mixed"
    shutil.copytree(fake, mixed)
    write_video(mixed / "short.npy", moving_clips(1, seed=5, frames=3)[0])
    result = compute_fvd(real, mixed, StubDetector(), num_frames=6)
    assert [path.name for path, _ in result.skipped] == ["short.npy"]
    assert result.num_samples == (11, 7)
    assert result.value == compute_fvd(real, fake, StubDetector(), num_frames=6).value
    assert "short.npy: has 3 frames" in capsys.readouterr().err


def test_if_all_videos_are_too_short_the_error_names_the_longest(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="7 frames asked for, the longest has 6: ask for at most 6"):
        compute_fvd(*folders, StubDetector(), num_frames=7)


def test_a_video_with_features_that_are_not_finite_is_named_in_the_error(folders: tuple[Path, Path]) -> None:
    class Broken(StubDetector):
        def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
            features = super().__call__(video, **switches)
            if len(self.batches) == 2:
                features[1, 3] = torch.nan
            return features

    with pytest.raises(ValueError, match=r"fake/005\.npy: its features contain NaN"):
        compute_fvd(*folders, Broken(), num_frames=6, batch_size=4)


def test_a_video_with_a_damaged_later_frame_is_reported_and_skipped(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames, good = tmp_path / "frames", tmp_path / "good"
    for i, clip in enumerate(moving_clips(4, seed=6)):
        write_video(frames / f"{i:03d}", clip)
        if i != 1:
            write_video(good / f"{i:03d}", clip)
    damaged = frames / "001" / "00003.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    for workers in (0, 2):
        result = compute_fvd(folders[0], frames, StubDetector(), num_frames=6, workers=workers)
        assert [path for path, _ in result.skipped] == [frames / "001"]
        assert result.num_samples[1] == 3
        assert "00003.png" in capsys.readouterr().err
        expected = compute_fvd(folders[0], good, StubDetector(), num_frames=6)
        assert result.value == pytest.approx(expected.value, rel=1e-9)
    three = compute_fvd(folders[0], frames, StubDetector(), num_frames=6, num_samples=3)
    assert three.num_samples == (3, 3)
    with pytest.raises(ValueError, match=r"frames has 3 videos of 6 frames or more and 4 are needed"):
        compute_fvd(folders[0], frames, StubDetector(), num_frames=6, num_samples=4)


@pytest.mark.parametrize("name", ["num_frames", "batch_size", "repeats"])
def test_a_count_below_one_is_named_in_the_error(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        compute_fvd(*folders, StubDetector(), **{name: 0})


def test_a_missing_folder_is_named_in_the_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        compute_fvd(folders[0], tmp_path / "absent", StubDetector(), num_frames=6)


def test_the_protocol_chooses_the_covariance(folders: tuple[Path, Path]) -> None:
    moments: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for clips in (moving_clips(11, seed=0), moving_clips(7, seed=1) // 2):
        features = stub_features(clips)
        for ddof, of_both in moments.items():
            of_both += [features.mean(axis=0), np.cov(features.T, ddof=ddof)]
    for ddof in (0, 1):
        protocol = replace(STYLEGAN_V, ddof=ddof)
        value = compute_fvd(*folders, StubDetector(), num_frames=6, protocol=protocol).value
        assert value == pytest.approx(frechet_distance(*moments[ddof]), rel=1e-9)


def test_real_clips_begin_at_a_random_frame_and_generated_ones_at_the_first(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    real, fake = folders

    def with_other_ends(folder: Path, frames: slice) -> Path:
        copy = tmp_path / folder.name
        copy.mkdir()
        for path in folder.iterdir():
            clip = np.load(path)
            clip[frames] = 0
            write_video(copy / path.name, clip)
        return copy

    def value(one: Path, two: Path) -> float:
        return compute_fvd(one, two, StubDetector(), num_frames=3).value

    late = slice(3, None)
    assert value(real, with_other_ends(fake, late)) == value(real, fake)
    assert value(with_other_ends(real, late), fake) != value(real, fake)


def test_repeats_draw_other_clips_and_return_mean_and_deviation(folders: tuple[Path, Path]) -> None:
    result = compute_fvd(*folders, StubDetector(), num_frames=3, repeats=3)
    assert len(set(result.values)) == 3
    assert result.value == pytest.approx(np.mean(result.values))
    assert result.deviation == pytest.approx(np.std(result.values, ddof=1))
    second = compute_fvd(*folders, StubDetector(), num_frames=3, seed=1)
    assert (second.value, second.deviation) == (result.values[1], None)
    same = compute_fvd(*folders, StubDetector(), num_frames=6, repeats=2)
    assert same.deviation is None
    assert "every repeat drew the same clips" in same.warnings[-1]


def distance_of(rows1: np.ndarray, rows2: np.ndarray) -> float:
    return frechet_distance(*(part for rows in (rows1, rows2) for part in (rows.mean(axis=0), np.cov(rows.T, ddof=0))))


def test_the_floor_and_the_matched_distance_are_of_equal_numbers_to_the_same_real_videos(
    folders: tuple[Path, Path],
) -> None:
    result = compute_fvd(*folders, StubDetector(), num_frames=6)
    assert (result.num_samples, result.matched_samples) == ((11, 7), (6, 5))
    real, fake = stub_features(moving_clips(11, seed=0)), stub_features(moving_clips(7, seed=1) // 2)
    for reference in combinations(range(11), 6):
        others = sorted(set(range(11)) - set(reference))
        if distance_of(real[list(reference)], real[others]) == pytest.approx(result.floor, rel=1e-9):
            possible = [distance_of(real[list(reference)], fake[list(made)]) for made in combinations(range(7), 5)]
            assert any(value == pytest.approx(result.matched, rel=1e-9) for value in possible)
            break
    else:
        pytest.fail("the floor is not a distance of disjoint real videos")


def test_other_real_videos_of_the_folder_make_the_floor_of_the_distance_itself(folders: tuple[Path, Path]) -> None:
    result = compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=4)
    assert result.matched_samples == result.num_samples == (4, 4)
    assert result.matched == result.value
    six = compute_fvd(*folders, StubDetector(), num_frames=6, num_samples=6)
    assert (six.num_samples, six.matched_samples) == ((6, 6), (6, 5))


def test_three_real_videos_have_no_floor(folders: tuple[Path, Path], tmp_path: Path) -> None:
    three = write_folder(tmp_path / "three", moving_clips(3, seed=5))
    result = compute_fvd(three, folders[1], StubDetector(), num_frames=6)
    assert (result.floor, result.matched, result.matched_samples) == (None, None, None)
    assert result.says_nothing


def test_few_videos_for_the_number_of_features_say_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    few = compute_fvd(*folders, StubDetector(), num_frames=6)
    assert few.says_nothing.startswith("7 videos for 5 features")
    assert few.needed == 20
    assert "says nothing (7 videos for 5 features): use 20 videos" in few.warnings[0]
    many = [moving_clips(20, seed=8), moving_clips(20, seed=9) // 2]
    result = compute_fvd(
        *(write_folder(tmp_path / str(i), clips) for i, clips in enumerate(many)), StubDetector(), num_frames=6
    )
    assert (result.says_nothing, result.needed, result.warnings) == ("", 0, ())


def test_a_distance_that_is_not_above_its_floor_says_nothing_and_no_number_of_videos_is_sure_to_help(
    tmp_path: Path,
) -> None:
    real = moving_clips(40, seed=8)
    one, two = write_folder(tmp_path / "real", real), write_folder(tmp_path / "made", real[:20])
    result = compute_fvd(one, two, StubDetector(), num_frames=6, num_samples=20)
    low = replace(result, floor=result.matched)
    assert (low.says_nothing, low.needed) == ("not above its floor", 0)
    assert mark_of(low) == "says nothing: not above its floor"
    assert replace(low, floor=low.matched / 2).says_nothing == ""


def test_the_kernel_distance_uses_the_same_features(folders: tuple[Path, Path]) -> None:
    result = compute_fvd(*folders, StubDetector(), num_frames=6, kernel=True)
    expected = kernel_distance(stub_features(moving_clips(11, seed=0)), stub_features(moving_clips(7, seed=1) // 2))
    assert result.kernel == pytest.approx(expected, rel=1e-9)
    assert compute_fvd(*folders, StubDetector(), num_frames=6).kernel is None


def test_a_stride_applies_to_both_folders_and_a_real_stride_to_the_real_one(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    real, fake = (moving_clips(11, seed=0), moving_clips(7, seed=1) // 2)
    thin_real = write_folder(tmp_path / "real", real[:, ::2])
    thin_fake = write_folder(tmp_path / "fake", fake[:, ::2])

    def value(one: Path, two: Path, **strides: int) -> float:
        return compute_fvd(one, two, StubDetector(), num_frames=3, protocol=FROM_THE_START, **strides).value

    thinned = value(thin_real, thin_fake)
    assert value(*folders, frame_stride=2) == pytest.approx(thinned, rel=1e-9)
    assert value(folders[0], thin_fake, real_stride=2) == pytest.approx(thinned, rel=1e-9)
    assert value(*folders) != pytest.approx(thinned, rel=1e-3)


def test_a_split_applies_to_the_real_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "val")
    write_folder(tmp_path / "train", moving_clips(5, seed=9))
    chosen = compute_fvd(tmp_path, folders[1], StubDetector(), num_frames=6, split="val")
    assert chosen.value == pytest.approx(compute_fvd(*folders, StubDetector(), num_frames=6).value, rel=1e-9)
    assert chosen.num_samples == (11, 7)


def test_folders_of_different_sizes_cannot_be_compared_without_a_resolution(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    large = write_folder(tmp_path / "large", moving_clips(3, seed=3, size=32))
    with pytest.raises(ValueError, match=r"16x16 in .*real and 32x32 in .*large \(height x width\); give a resolution"):
        compute_fvd(folders[0], large, StubDetector(), num_frames=6)


def test_the_nearest_real_video_of_each_generated_one_is_found(folders: tuple[Path, Path]) -> None:
    result = compute_fvd(*folders, StubDetector(), num_frames=6, neighbours=True)
    real, fake = stub_features(moving_clips(11, seed=0)), stub_features(moving_clips(7, seed=1) // 2)
    gaps = np.linalg.norm(fake[:, None] - real[None], axis=2)
    assert [neighbour.distance for neighbour in result.neighbours] == pytest.approx(sorted(gaps.min(axis=1)))
    for neighbour in result.neighbours:
        assert int(neighbour.nearest.stem) == gaps[int(neighbour.path.stem)].argmin()


class StubClassifier:
    """A classifier of three classes by the mean red, green and blue of a clip."""

    name = "stub classes"

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        clips = video.double() / 255
        return torch.softmax(9 * clips.mean(dim=(2, 3, 4)), dim=1)


def test_the_inception_score_uses_all_videos_of_one_folder(folders: tuple[Path, Path]) -> None:
    scores = []
    for folder, clips in zip(folders, (moving_clips(11, seed=0), moving_clips(7, seed=1) // 2), strict=True):
        probabilities = features_of(StubClassifier(), clips, C3D, "cpu").numpy()
        result = compute_vis(folder, StubClassifier(), num_frames=6, splits=3, batch_size=2)
        assert (result.value, result.deviation) == pytest.approx(inception_score(probabilities, 3), rel=1e-9)
        assert (result.num_samples, result.num_classes, result.softmax) == (len(clips), 3, False)
        scores.append(result.value)
    assert abs(scores[0] - scores[1]) > 1e-3, "the score depends on the given folder"


def test_a_softmax_is_applied_to_scores_of_a_classifier_and_the_result_says_so(folders: tuple[Path, Path]) -> None:
    class Scores(StubClassifier):
        def __call__(self, video: torch.Tensor) -> torch.Tensor:
            return super().__call__(video).log() + 5

    scores, probabilities = (compute_vis(folders[0], c, 6, splits=3) for c in (Scores(), StubClassifier()))
    assert scores.softmax
    assert scores.value == pytest.approx(probabilities.value, rel=1e-9)


def test_fewer_videos_than_splits_are_an_error(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="7 samples cannot be divided into 10 splits"):
        compute_vis(folders[1], StubClassifier(), num_frames=6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_random_detector_works_with_every_protocol(folders: tuple[Path, Path], name: str) -> None:
    result = compute_fvd(*folders, load_detector("random"), num_frames=6, protocol=PROTOCOLS[name])
    assert result.value > 0
    assert result.protocol == name


def test_without_a_number_clips_have_the_frames_of_most_videos(folders: tuple[Path, Path]) -> None:
    usual = compute_fvd(*folders, StubDetector())
    assert usual == compute_fvd(*folders, StubDetector(), num_frames=usual.num_frames)
    assert usual.num_frames == moving_clips(1, seed=0).shape[1]
