"""Tests of the world metrics: real videos have near-perfect scores, and each defect changes its score."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vidm.video_io import read_video, write_video
from vidm.world import CollisionWorld, render_clip, write_dataset
from vidm.world_metrics import WorldScores, displacement_distance, find_targets, track_solids, world_of, world_scores
from vidm.world_render import Camera

NUM_FRAMES = 16
WORLDS = [CollisionWorld(7, index, NUM_FRAMES) for index in range(24)]


@pytest.fixture(scope="module")
def real() -> list[np.ndarray]:
    return [render_clip(world, 32)[None] for world in WORLDS]


@pytest.fixture(scope="module")
def real_scores(real: list[np.ndarray]) -> WorldScores:
    return world_scores(real, WORLDS)


def red_and_green() -> tuple[CollisionWorld, np.ndarray]:
    """A world of two solids, red (0) and green (1), and its video (T, 32, 32, 3)."""
    world = WORLDS[7]
    assert world.colours == ["red", "green"]
    return world, render_clip(world, 32)


def test_real_videos_have_near_perfect_scores(real_scores: WorldScores) -> None:
    assert real_scores.num_solids >= 30
    assert real_scores.still_there >= 0.98
    assert real_scores.colour_kept >= 0.98
    assert real_scores.shape_kept >= 0.98
    assert real_scores.shape_overlap > 0.8
    assert real_scores.centroid_error.shape == (NUM_FRAMES,)
    assert real_scores.centroid_error.max() < 0.3


def test_compression_hardly_changes_scores(real: list[np.ndarray], real_scores: WorldScores, tmp_path: Path) -> None:
    for index, clips in enumerate(real):
        write_video(tmp_path / f"{index}.mp4", clips[0])
    scores = world_scores([read_video(tmp_path / f"{i}.mp4")[None] for i in range(len(WORLDS))], WORLDS)
    assert scores.num_solids == real_scores.num_solids  # the choice of solids depends on the world and not on pixels
    assert min(scores.still_there, scores.colour_kept, scores.shape_kept) >= 0.95
    assert scores.centroid_error.max() < 0.6
    assert displacement_distance(scores.displacements, real_scores.displacements) < 0.05


def test_noise_far_from_a_solid_does_not_move_its_track(real: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    noisy = [(clips + rng.normal(0, 6, clips.shape)).round().clip(0, 255).astype(np.uint8) for clips in real]
    for clips, noisy_clips in zip(real, noisy, strict=True):
        noisy_clips[:, 0] = clips[:, 0]
    scores = world_scores(noisy, WORLDS)
    assert scores.still_there >= 0.98
    assert scores.centroid_error.max() < 0.4
    assert scores.displacements.max() < 3


def test_displacements_scale_with_the_resolution() -> None:
    worlds = WORLDS[:8]
    scores = world_scores([render_clip(world, 64)[None] for world in worlds], worlds)
    small = world_scores([render_clip(world, 32)[None] for world in worlds], worlds)
    assert min(scores.still_there, scores.colour_kept, scores.shape_kept) >= 0.95
    assert scores.displacements.mean() == pytest.approx(2 * small.displacements.mean(), rel=0.05)


def test_measured_displacements_match_those_of_the_world(real_scores: WorldScores) -> None:
    true = []
    for world in WORLDS:
        targets = find_targets(render_clip(CollisionWorld(world.seed, world.index, 1), 32)[0], world)
        moves = np.linalg.norm(np.diff(targets.centres, axis=0), axis=-1)
        true.append(moves[targets.visible[1:] & targets.visible[:-1]])
    assert displacement_distance(real_scores.displacements, np.concatenate(true)) < 0.05


def test_a_repeated_first_frame_has_no_motion_and_a_growing_error(
    real: list[np.ndarray], real_scores: WorldScores
) -> None:
    scores = world_scores([clips[:, :1].repeat(NUM_FRAMES, 1) for clips in real], WORLDS)
    assert scores.displacements.max() < 0.1
    assert scores.displacements.mean() < 1e-3
    assert displacement_distance(scores.displacements, real_scores.displacements) > 0.3
    assert (np.diff(scores.centroid_error[::3]) > 0.3).all()
    assert min(scores.still_there, scores.colour_kept, scores.shape_kept) >= 0.98


def test_a_removed_solid_is_not_found() -> None:
    world, clip_u8 = red_and_green()
    clip_u8[6:] = [Camera(32).render(world.solids[1:], world.poses(frame)[1:]) for frame in range(6, NUM_FRAMES)]
    targets = find_targets(clip_u8[0], world)
    tracks = track_solids(clip_u8, targets)
    assert tracks.found.T.tolist() == [[True] * 6 + [False] * 10, [True] * 16]
    assert (tracks.positions[6:, 0] == tracks.positions[5, 0]).all()  # the last known position
    scores = world_scores([clip_u8[None]], [world])
    assert (scores.still_there, scores.colour_kept, scores.shape_kept, scores.num_solids) == (0.5, 1, 1, 2)


def test_a_recoloured_solid_is_found_and_its_colour_is_not_kept() -> None:
    world, clip_u8 = red_and_green()
    red = clip_u8[..., 0] > clip_u8[..., 1] + 5.0
    clip_u8[8:][red[8:]] = clip_u8[8:][red[8:]][:, [2, 1, 0]]
    scores = world_scores([clip_u8[None]], [world])
    assert (scores.still_there, scores.colour_kept, scores.shape_kept) == (1, 0.5, 1)


def test_the_shape_of_a_blurred_solid_is_not_kept(real: list[np.ndarray], real_scores: WorldScores) -> None:
    smeared = [clips.copy() for clips in real]
    for clips in smeared:
        clips[:, 1:] = gaussian_filter(clips[:, 1:].astype(float), (0, 0, 1.5, 1.5, 0)).round()
    scores = world_scores(smeared, WORLDS)
    assert scores.shape_overlap < real_scores.shape_overlap - 0.2
    assert scores.shape_kept < 0.85


def test_a_strongly_blurred_solid_is_not_found(real: list[np.ndarray]) -> None:
    dissolved = [clips.copy() for clips in real]
    for clips in dissolved:
        clips[:, 1:] = gaussian_filter(clips[:, 1:].astype(float), (0, 0, 4, 4, 0)).round()
    scores = world_scores(dissolved, WORLDS)
    assert scores.still_there < 0.3


def test_centroid_error_is_of_the_best_video_and_other_scores_are_over_all_videos(real: list[np.ndarray]) -> None:
    still = [clips[:, :1].repeat(NUM_FRAMES, 1) for clips in real]
    only_real, only_still, both = (
        world_scores(videos, WORLDS)
        for videos in (real, still, [np.concatenate(pair) for pair in zip(still, real, strict=True)])
    )
    assert both.centroid_error.sum() <= only_real.centroid_error.sum()
    assert both.centroid_error[1:] == pytest.approx(only_real.centroid_error[1:], abs=0.05)
    of_each = (only_real.mean_centroid_error + only_still.mean_centroid_error) / 2
    assert both.mean_centroid_error == pytest.approx(of_each)
    assert both.num_solids == 2 * only_real.num_solids
    assert len(both.displacements) == len(only_real.displacements) + len(only_still.displacements)


def test_a_world_longer_than_its_videos_has_the_same_scores(real: list[np.ndarray], real_scores: WorldScores) -> None:
    longer = [CollisionWorld(world.seed, world.index, 40) for world in WORLDS]
    assert (world_scores(real, longer).centroid_error == real_scores.centroid_error).all()


def test_solids_that_look_alike_are_not_tracked() -> None:
    world = next(world for world in WORLDS if world.colours == ["yellow", "brown", "yellow", "purple", "blue"])
    assert find_targets(render_clip(world, 32)[0], world).indices.tolist() == [3]


def test_worlds_without_a_trackable_solid_are_an_error() -> None:
    world, clip_u8 = WORLDS[0], render_clip(WORLDS[0], 32)
    candidates = (CollisionWorld(7, i, 1) for i in range(500))
    grey = next(world for world in candidates if not find_targets(clip_u8[0], world).indices.size)
    with pytest.raises(ValueError, match="any of the 1 worlds"):
        world_scores([render_clip(grey, 32)[None]], [grey])
    assert world_scores([clip_u8[None, :1], render_clip(grey, 32)[None]], [world, grey]).num_solids == 1


def test_a_world_is_recreated_from_the_json_file_of_its_video(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, num_frames=3, resolution=16, seed=5, start=2, progress=False)
    (video,) = tmp_path.rglob("*.mp4")
    world = world_of(video)
    assert (world.seed, world.index, world.num_frames) == (5, 2, 3)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", json.dumps({"seed": -1, "index": 0, "num_frames": 3})])
def test_a_json_file_without_ground_truth_is_an_error(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "clip.json").write_text(text)
    with pytest.raises(ValueError, match=r"clip\.json: not the ground truth"):
        world_of(tmp_path / "clip.mp4")
