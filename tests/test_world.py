"""Tests of the embedded world: physics against closed forms, pictures against geometry, and written files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.spynet import warp
from vidm.video_io import read_video
from vidm.world import FPS, CollisionWorld, render_clip, repeat_first_frames, write_dataset
from vidm.world_physics import Discs, Motion, simulate
from vidm.world_render import EYE, FOCAL, HALF_SIZES, Camera, Solid

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_synthetic_dataset.py"
RED, BLUE = (0.7, 0.1, 0.1), (0.1, 0.1, 0.7)


def slide(
    positions: list[list[float]],
    velocities: list[list[float]],
    masses: tuple[float, ...] = (1.0, 1.0),
    braking: float = 0.0,
    rubbing: float = 0.0,
    num_frames: int = 50,
) -> Motion:
    """Simulate discs of radius 0.5 that collisions can make spin."""
    count = len(positions)
    discs = Discs(np.full(count, 0.5), np.array(masses[:count]), np.full(count, braking), np.full(count, True))
    return simulate(discs, np.array(positions), np.array(velocities), num_frames, FPS, rubbing)


def smallest_gap(positions: np.ndarray, radii: np.ndarray) -> float:
    first, second = np.triu_indices(len(radii), 1)
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    return float((distances - radii[first] - radii[second]).min())


# Physics


def test_braking_stops_a_disc_after_v_squared_over_2a():
    motion = slide([[1.0, 2.0]], [[3.0, 4.0]], masses=(1.0,), braking=4.0)
    times = np.minimum(np.arange(50) / FPS, 5 / 4)
    travelled = 5 * times - 4 * times**2 / 2
    np.testing.assert_allclose(motion.positions[:, 0], [1, 2] + travelled[:, None] * [0.6, 0.8], atol=1e-9)
    np.testing.assert_allclose(motion.positions[-1, 0], [1 + 0.6 * 25 / 8, 2 + 0.8 * 25 / 8], atol=1e-9)
    assert (motion.velocities[-1] == 0).all()


def test_a_head_on_collision_of_unequal_masses_follows_the_elastic_formulas():
    motion = slide([[0.0, 0.0], [3.0, 0.0]], [[5.0, 0.0], [-1.0, 0.0]], masses=(1.0, 3.0))
    np.testing.assert_allclose(motion.velocities[-1], [[5 - 2 * 3 / 4 * 6, 0], [-1 + 2 * 1 / 4 * 6, 0]], atol=1e-9)
    # The gap is 2 and shrinks by 6 per second, so they meet at 1/3 s. Frame 9 is the first one after that.
    assert motion.collisions == [(9, 0, 1)]


def test_an_oblique_collision_without_friction_conserves_momentum_and_energy():
    masses = np.array([1.0, 2.0])
    motion = slide([[0.0, 0.0], [3.0, 0.6]], [[5.0, 0.2], [0.0, -0.3]], masses=(1.0, 2.0))
    assert len(motion.collisions) == 1
    momentum = (masses[:, None] * motion.velocities).sum(1)
    energy = (masses[:, None] * motion.velocities**2).sum((1, 2)) / 2
    np.testing.assert_allclose(momentum, momentum[:1].repeat(50, 0), atol=1e-9)
    np.testing.assert_allclose(energy, energy[0])
    assert (motion.yaws == 0).all()


def test_a_collision_with_friction_conserves_both_momenta_and_loses_energy():
    masses = np.array([1.0, 2.0])
    motion = slide([[0.0, 0.0], [3.0, 0.6]], [[5.0, 0.2], [0.0, -0.3]], masses=(1.0, 2.0), rubbing=0.3)
    momentum = (masses[:, None] * motion.velocities).sum(1)
    np.testing.assert_allclose(momentum[-1], momentum[0], atol=1e-9)
    spins = np.diff(motion.yaws, axis=0)[-1] * FPS  # spins are constant without braking
    moments = masses * 0.5**2 / 3
    x, v = motion.positions, motion.velocities
    orbital = (masses * (x[..., 0] * v[..., 1] - x[..., 1] * v[..., 0])).sum(1)
    assert (spins != 0).all()
    np.testing.assert_allclose(orbital[-1] + (moments * spins).sum(), orbital[0], atol=1e-9)
    energy = (masses[:, None] * v**2).sum((1, 2)) / 2
    assert energy[-1] + (moments * spins**2).sum() / 2 < energy[0]


def test_discs_do_not_tunnel_at_a_thousand_times_the_usual_speed():
    motion = slide([[0.0, 0.0], [70.0, 0.0]], [[4000.0, 0.0], [0.0, 0.0]], num_frames=3)
    assert motion.collisions == [(1, 0, 1)]
    np.testing.assert_allclose(motion.velocities[-1], [[0, 0], [4000, 0]], atol=1e-6)


def test_a_row_of_touching_discs_passes_the_impulse_to_the_last_disc():
    motion = slide([[0.0, 0.0], [2.0, 0.0], [3.0005, 0.0]], [[3.0, 0.0], [0, 0], [0, 0]], masses=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(motion.velocities[-1], [[0, 0], [0, 0], [3, 0]], atol=1e-9)


# Worlds


def test_no_two_solids_overlap_in_any_frame():
    worlds = [CollisionWorld(5, index) for index in range(60)]
    assert sum(len(world.collisions) for world in worlds) > 40
    assert min(smallest_gap(world.positions, world.radii) for world in worlds) > -1e-9


def test_a_world_depends_only_on_seed_and_index():
    first, again = CollisionWorld(3, 8, 16), CollisionWorld(3, 8, 16)
    assert first.ground_truth() == again.ground_truth()
    assert (render_clip(first, 32) == render_clip(again, 32)).all()
    others = [CollisionWorld(3, 9, 16), CollisionWorld(4, 8, 16), CollisionWorld(8, 3, 16)]
    assert all((render_clip(first, 32) != render_clip(other, 32)).any() for other in others)


def test_the_first_frames_of_a_world_do_not_depend_on_its_length():
    for index in range(10):
        long, short = CollisionWorld(0, index, 128), CollisionWorld(0, index, 16)
        assert (long.positions[:16] == short.positions).all()
        assert (long.yaws[:16] == short.yaws).all()
        assert [hit for hit in long.collisions if hit[0] < 16] == short.collisions


def test_a_solid_in_view_moves_in_the_first_16_frames():
    for index in range(60):
        centres = 64 * CollisionWorld(1, index, 16).centres()
        in_view = (np.abs(centres) < 32).all(-1)[1:]
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
        assert ((steps > 0.25) & in_view).any(1).sum() >= 12
        assert (steps * in_view).max() < 5


def test_no_two_solids_of_a_world_look_alike():
    for index in range(60):
        world = CollisionWorld(2, index, 1)
        assert 2 <= len(set(world.solids)) == len(world.shapes) <= 5


@pytest.mark.parametrize("numbers", [(-1, 0, 16), (0, -1, 16), (0, 0, 0)])
def test_invalid_numbers_are_reported(numbers: tuple[int, int, int]):
    with pytest.raises(ValueError, match=r"-1|num_frames is 0"):
        CollisionWorld(*numbers)


# Pictures


def red_mask(frame: np.ndarray) -> np.ndarray:
    return frame[..., 0] > frame[..., 1] + 20.0


@pytest.mark.parametrize("place", [(0.0, 0.0), (-2.0, 2.0), (1.5, -2.0)])
def test_a_sphere_is_drawn_where_its_centre_is_projected(place: tuple[float, float]):
    camera = Camera(256)
    rows, columns = np.nonzero(red_mask(camera.render([Solid("sphere", RED, False)], [(*place, 0.0)])))
    expected = camera.project(np.array([*place, HALF_SIZES["sphere"]]))
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], expected, atol=0.6)


@pytest.mark.parametrize("shape", HALF_SIZES)
def test_rays_enter_each_solid_at_its_surface(shape: str):
    half, pose = HALF_SIZES[shape], (0.7, -0.4, 0.3)
    camera = Camera(96)
    columns, rows = np.meshgrid(np.arange(96) + 0.5, np.arange(96) + 0.5)
    rays = camera.directions(columns.ravel(), rows.ravel())
    depth, owner = camera.cast([Solid(shape, RED, False)], [pose], rays)
    x, y, z = np.array(EYE)[:, None] + (depth * rays)[:, owner == 0] - np.array([[0.7], [-0.4], [half]])
    across, along = np.cos(0.3) * x + np.sin(0.3) * y, np.cos(0.3) * y - np.sin(0.3) * x
    size = {
        "sphere": np.sqrt(x**2 + y**2 + z**2),
        "cylinder": np.maximum(np.hypot(x, y), np.abs(z)),
        "cube": np.maximum(np.maximum(np.abs(across), np.abs(along)), np.abs(z)),
    }[shape]
    assert len(size) > 60
    np.testing.assert_allclose(size, half, atol=1e-9)


@pytest.mark.parametrize("shape", HALF_SIZES)
def test_a_solid_occludes_another_behind_it_in_any_order_of_the_list(shape: str):
    near, far = (Solid(shape, RED, False), (0.0, -0.3, 0.2)), (Solid("cube", BLUE, False), (0.1, 0.85, 0.5))
    camera = Camera(128)
    pictures = [camera.render(*zip(*order, strict=True)) for order in ([near, far], [far, near])]
    assert (pictures[0] == pictures[1]).all()
    alone = red_mask(camera.render([near[0]], [near[1]]))
    assert (red_mask(pictures[0]) == alone).mean() > 0.999
    assert (pictures[0][..., 2] > pictures[0][..., 0] + 20.0).any()


@pytest.mark.parametrize("shape", HALF_SIZES)
def test_a_shadow_only_darkens_the_floor(shape: str):
    camera = Camera(96)
    empty, shadowed = camera.render([], []).astype(int), camera.render([Solid(shape, RED, True)], [(0.3, 0.5, 0.0)])
    floor = np.abs(np.ptp(shadowed.astype(int), axis=-1)) < 8
    assert (shadowed <= empty)[floor].all()
    assert (shadowed.astype(int) < empty - 20)[floor].any()


def test_the_framing_is_the_same_at_any_resolution():
    world = CollisionWorld(0, 4, 3)
    fine, coarse = (render_clip(world, side).astype(float) for side in (128, 64))
    difference = np.abs(fine.reshape(3, 64, 2, 64, 2, 3).mean((2, 4)) - coarse)
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.999) < 25


def test_a_square_picture_is_the_central_part_of_a_wide_picture():
    world = CollisionWorld(0, 4, 2)
    wide, square = render_clip(world, (64, 96)), render_clip(world, 64)
    assert np.abs(wide[:, :, 16:80].astype(int) - square).max() <= 1


def test_a_side_below_8_pixels_is_an_error():
    with pytest.raises(ValueError, match="64x7"):
        render_clip(CollisionWorld(0, 0, 1), (7, 64))


# Optical flow


def owners(world: CollisionWorld, frame: int, side: int) -> np.ndarray:
    camera = Camera(side)
    columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    rays = camera.directions(columns.ravel(), rows.ravel())
    return camera.cast(world.solids, world.poses(frame), rays)[1].reshape(side, side)


def test_the_flow_of_a_sphere_is_that_of_the_surface_point_at_each_pixel():
    """Each pixel is compared with an independent camera model."""
    world, side, seen = CollisionWorld(0, 5, 9), 96, 0
    flow, _ = world.flow(0, 8, side)
    owner = owners(world, 0, side)
    distance = np.hypot(EYE[1], EYE[2])
    forward, up = np.array([0, -EYE[1], -EYE[2]]) / distance, np.array([0, EYE[2], -EYE[1]]) / distance
    for row, column in np.argwhere(owner >= 0):
        index = owner[row, column]
        if world.shapes[index] != "sphere":
            continue
        ray = forward * FOCAL * side + [column + 0.5 - side / 2, 0, 0] - up * (row + 0.5 - side / 2)
        ray /= np.linalg.norm(ray)
        middle = np.array([*world.positions[0, index], HALF_SIZES["sphere"]]) - EYE
        along = middle @ ray
        point = ray * (along - np.sqrt(along**2 - middle @ middle + HALF_SIZES["sphere"] ** 2))
        point[:2] += world.positions[8, index] - world.positions[0, index]
        there = FOCAL * side * np.array([point[0], -(point @ up)]) / (point @ forward) + side / 2
        np.testing.assert_allclose(flow[:, row, column], there - [column + 0.5, row + 0.5], atol=1e-3)
        seen += 1
    assert seen > 100


def test_warping_a_later_frame_by_the_flow_gives_the_earlier_frame():
    moved = 0.0
    for index in range(6):
        world = CollisionWorld(0, index, 16)
        clip_u8 = render_clip(world, 96)
        flow, visible = world.flow(0, 10, 96)
        frames = torch.from_numpy(clip_u8).permute(0, 3, 1, 2).float() / 127.5 - 1
        warped = warp(frames[10:11], torch.from_numpy(flow)[None])[0]
        owner = owners(world, 0, 96)
        inner = np.all([owner == np.roll(owner, shift, axis) for shift in (-2, 2) for axis in (0, 1)], axis=0)
        chosen = torch.from_numpy(visible & (owner >= 0) & inner & (np.hypot(*flow) > 1))
        if chosen.sum() < 20:
            continue
        error = (warped - frames[0])[:, chosen].abs().mean()
        unwarped = (frames[10] - frames[0])[:, chosen].abs().mean()
        assert error < 0.06  # 8 grey levels, because shading changes with position
        moved = max(moved, float(unwarped / error))
    assert moved > 4


def test_the_flow_moves_the_corner_of_a_spinning_cube_to_its_true_position():
    world = next(
        world
        for world in (CollisionWorld(0, index, 60) for index in range(50))
        if (np.abs(world.yaws[-1] - world.yaws[0]) > 0.2).any()
    )
    cube = int(np.abs(world.yaws[-1] - world.yaws[0]).argmax())
    inset = 0.39 * np.sqrt(2)  # just inside the top face, so that rounding cannot miss the solid
    camera = Camera(256)

    def top_corner(frame: int) -> np.ndarray:
        angle = world.yaws[frame, cube] + np.pi / 4
        corner = world.positions[frame, cube] + inset * np.array([np.cos(angle), np.sin(angle)])
        return camera.project(np.array([*corner, 2 * HALF_SIZES["cube"]]))

    frames = [
        f for f in range(60) if (np.abs(camera.project(np.array([*world.positions[f, cube], 0.4])) - 128) < 90).all()
    ]
    i, j = frames[0], frames[-1]
    assert abs(world.yaws[j, cube] - world.yaws[i, cube]) > 0.05
    here = top_corner(i)
    column, row = np.floor(here).astype(int)
    assert owners(world, i, 256)[row, column] == cube
    flow, _ = world.flow(i, j, 256)
    np.testing.assert_allclose(flow[:, row, column], top_corner(j) - here, atol=1.0)


def test_the_floor_has_zero_flow_and_is_occluded_where_a_solid_arrives():
    world = CollisionWorld(0, 7, 16)
    flow, visible = world.flow(0, 15, 64)
    floor = owners(world, 0, 64) == -1
    assert np.abs(flow[:, floor]).max() < 1e-6
    covered = owners(world, 15, 64) != -1
    assert (visible[floor] == ~covered[floor]).all()
    assert (floor & covered).sum() > 20


def test_the_flow_of_a_frame_to_itself_is_zero():
    flow, visible = CollisionWorld(0, 1, 4).flow(2, 2, (48, 72))
    assert flow.shape == (2, 48, 72)
    assert flow.dtype == np.float32
    assert np.abs(flow).max() < 1e-6
    assert visible.all()


# Files


def test_ground_truth_round_trips_through_json_and_agrees_with_the_world():
    world = CollisionWorld(0, 3, 40)
    truth = world.ground_truth()
    assert json.loads(json.dumps(truth)) == truth
    for name in ("positions", "velocities", "yaws"):
        np.testing.assert_allclose(truth[name], getattr(world, name), atol=1e-5)
    assert [(hit["frame"], *hit["objects"]) for hit in truth["collisions"]] == world.collisions
    assert [solid["colour"] for solid in truth["objects"]] == world.colours
    middles = [[*place, solid["height"] / 2] for place, solid in zip(world.positions[9], truth["objects"], strict=True)]
    pixels = np.array(truth["centres"][9]) * 120 + [100, 60]
    np.testing.assert_allclose(pixels, Camera((120, 200)).project(np.array(middles)), atol=0.01)


def test_a_dataset_has_the_clevrer_layout_and_a_ground_truth_file_for_each_video(tmp_path: Path):
    write_dataset(tmp_path, 2, num_frames=5, resolution=(32, 48), seed=1, start=999, progress=False)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert written == [
        "video_00000-01000/video_00999.json",
        "video_00000-01000/video_00999.mp4",
        "video_01000-02000/video_01000.json",
        "video_01000-02000/video_01000.mp4",
    ]
    world = CollisionWorld(1, 1000, 5)
    video = tmp_path / "video_01000-02000" / "video_01000.mp4"
    assert np.abs(read_video(video).astype(int) - render_clip(world, (32, 48))).mean() < 4
    truth = json.loads(video.with_suffix(".json").read_text())
    assert truth == {**world.ground_truth(), "resolution": [32, 48]}


def test_an_interrupted_dataset_is_completed(tmp_path: Path):
    write_dataset(tmp_path, 2, num_frames=3, resolution=16, progress=False)
    kept, lost = sorted(tmp_path.rglob("*.mp4"))
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    write_dataset(tmp_path, 3, num_frames=3, resolution=16, progress=False)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert len(list(tmp_path.rglob("*.mp4"))) == 3


def test_two_workers_write_the_same_files_as_one_worker(tmp_path: Path):
    for workers in (1, 2):
        write_dataset(tmp_path / str(workers), 3, num_frames=3, resolution=16, workers=workers, progress=False)
    one, two = (sorted(path for path in (tmp_path / name).rglob("*.*")) for name in "12")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_videos_with_different_settings_in_one_folder_are_an_error(tmp_path: Path):
    write_dataset(tmp_path, 1, num_frames=3, resolution=16, progress=False)
    with pytest.raises(ValueError, match=r"video_00000.mp4 has seed 0, not 1"):
        write_dataset(tmp_path, 1, num_frames=3, resolution=16, seed=1, progress=False)
    next(tmp_path.rglob("*.json")).unlink()
    with pytest.raises(ValueError, match="choose another folder"):
        write_dataset(tmp_path, 1, num_frames=3, resolution=16, progress=False)


def test_repeated_first_frames_are_numbered_from_0_and_as_long_as_their_videos(tmp_path: Path):
    write_dataset(tmp_path / "real", 2, num_frames=3, resolution=16, start=999, progress=False)
    repeat_first_frames(tmp_path / "real", tmp_path / "still")
    videos = sorted((tmp_path / "still").iterdir())
    assert [path.name for path in videos] == ["video_00000.mp4", "video_00001.mp4"]
    for real, still in zip(sorted((tmp_path / "real").rglob("*.mp4")), videos, strict=True):
        expected = read_video(real)[:1].repeat(3, axis=0).astype(int)
        assert np.abs(read_video(still) - expected).mean() < 4


# The script


def run_script(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False)


def test_the_script_writes_the_requested_videos(tmp_path: Path):
    flags = f"--out {tmp_path} --num-videos 1 --num-frames 4 --resolution 24 --seed 6"
    result = run_script(*flags.split())
    assert result.returncode == 0, result.stderr
    truth = json.loads((tmp_path / "video_00000-01000" / "video_00000.json").read_text())
    assert (truth["seed"], truth["num_frames"], truth["resolution"]) == (6, 4, [24, 24])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--num-videos", "0"], "num_videos is 0"),
        (["--num-frames", "0"], "num_frames is 0"),
        (["--resolution", "5"], "5x5"),
        (["--seed", "-1"], "seed -1"),
        (["--out", "file"], "file cannot be used as an output folder"),
        (["--out", "file/below"], "file/below cannot be used as an output folder"),
    ],
)
def test_the_script_reports_an_error_in_one_line_and_writes_nothing(tmp_path: Path, flags: list[str], named: str):
    (tmp_path / "file").write_text("kept")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
