"""A CLEVRER-like synthetic world of colliding solids, generated from a seed, with ground truth.

Cubes, spheres and cylinders in 8 colours and 2 materials rest on a grey floor, slide into view, and collide. It follows
CLEVRER (Yi et al. 2020, https://arxiv.org/abs/1910.01442); the implementation is ours. A clip depends only on
(seed, index), and its first frames do not depend on its length.

    world = CollisionWorld(seed=0, index=7, num_frames=16)
    clip_u8 = render_clip(world, 64)  # (16, 64, 64, 3)
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vidm.console import short
from vidm.files import LARGEST, atomic_write, read_json
from vidm.interrupts import in_processes
from vidm.video_io import read_video, write_video
from vidm.world_physics import Discs, simulate
from vidm.world_render import EYE, FORWARD, HALF_SIZES, Camera, Pose, Solid, footprint_radius

FPS = 25
COLOURS = {  # linear RGB, as in CLEVR
    "gray": (0.34, 0.34, 0.34),
    "red": (0.68, 0.14, 0.14),
    "blue": (0.16, 0.29, 0.84),
    "green": (0.11, 0.41, 0.08),
    "brown": (0.51, 0.29, 0.10),
    "purple": (0.51, 0.15, 0.75),
    "cyan": (0.16, 0.82, 0.82),
    "yellow": (1.00, 0.93, 0.20),
}
MASSES = {"rubber": 1.0, "metal": 2.0}
BRAKING = {"rubber": 0.9, "metal": 0.6}  # deceleration on the floor, units / s^2

STAGE = (2.3, 3.0)  # half axes of the ellipse in which solids rest and meet
STAGE_CENTRE = (0.0, 0.4)
RIM = 1.35  # solids enter across the ellipse STAGE times this, which is near the edge of a square picture
VIDEOS_PER_FOLDER = 1000  # as in CLEVRER's archives


def _inside_stage(rng: np.random.Generator) -> np.ndarray:
    angle, radius = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform())
    return np.array(STAGE_CENTRE) + radius * np.array(STAGE) * [np.cos(angle), np.sin(angle)]


def _sliding_in(
    rng: np.random.Generator, target: np.ndarray, braking: float, late: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity at frame 0 of a solid that crosses the rim towards a target, at frame 0 or up to 4 s later.

    The point and velocity of the crossing are sampled, and the braking motion is traced back in time to frame 0."""
    angle = rng.uniform(0, 2 * np.pi)
    rim = np.array(STAGE_CENTRE) + RIM * np.array(STAGE) * [np.cos(angle), np.sin(angle)]
    heading = target + rng.normal(0, 0.2, 2) - rim
    heading /= np.hypot(*heading)
    speed, wait = rng.uniform(2.5, 6.5), rng.uniform(0.3, 4) if late else 0.0
    return rim - heading * (speed * wait + braking * wait**2 / 2), heading * (speed + braking * wait)


def _apart(positions: np.ndarray, radii: np.ndarray) -> bool:
    first, second = np.triu_indices(len(radii), 1)
    distances = np.hypot(*(positions[first] - positions[second]).T)
    return bool((distances > radii[first] + radii[second] + 0.15).all())


class CollisionWorld:
    """The motion in one clip of 2 to 5 solids that all look different; at least one slides in at frame 0.

    positions, velocities (T, N, 2) on the floor, in units and units per second, x to the right and y away from the
    camera; yaws (T, N) in radians, constant except for cubes; shapes, colours, materials: N names each; masses (N,);
    radii (N,) of the circular footprints, which never overlap (a cube's circle goes through its corners); collisions
    [(frame, i, j)] with i < j, where frame is the first one that shows the outcome.
    Raises ValueError for a negative seed or index and for num_frames < 1. Ours."""

    def __init__(self, seed: int, index: int, num_frames: int = 128) -> None:
        if seed < 0 or index < 0:
            raise ValueError(f"seed {seed} and index {index} must not be negative")
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; a clip has at least 1")
        self.seed, self.index, self.num_frames = seed, index, num_frames
        rng = np.random.default_rng([seed, index])
        count = int(rng.integers(2, 6))
        kinds = [(shape, colour, material) for shape in HALF_SIZES for colour in COLOURS for material in MASSES]
        chosen = [kinds[kind] for kind in rng.choice(len(kinds), count, replace=False)]
        self.shapes, self.colours, self.materials = (list(names) for names in zip(*chosen, strict=True))
        self.radii = np.array([footprint_radius(shape) for shape in self.shapes])
        self.masses = np.array([MASSES[material] for material in self.materials])
        braking = np.array([BRAKING[material] for material in self.materials])
        cubes = np.array([shape == "cube" for shape in self.shapes])
        positions, velocities = self._sample_start(rng, braking)
        motion = simulate(Discs(self.radii, self.masses, braking, turns=cubes), positions, velocities, num_frames, FPS)
        self.positions, self.velocities, self.collisions = motion.positions, motion.velocities, motion.collisions
        self.yaws = motion.yaws + cubes * rng.uniform(0, np.pi / 2, count)
        self.solids = [Solid(shape, COLOURS[colour], material == "metal") for shape, colour, material in chosen]

    def _sample_start(self, rng: np.random.Generator, braking: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample a place on the stage for each solid; some rest there, the others slide in towards another place."""
        count = len(self.radii)
        while True:
            places = np.stack([_inside_stage(rng) for _ in range(count)])
            positions, velocities = places.copy(), np.zeros((count, 2))
            for mover in range(count):
                if mover == 0 or rng.uniform() < 0.6:
                    target = places[(mover + rng.integers(1, count)) % count]
                    late = mover > 0 and rng.uniform() < 0.6
                    positions[mover], velocities[mover] = _sliding_in(rng, target, braking[mover], late)
            if _apart(positions, self.radii):
                return positions, velocities

    def poses(self, frame: int) -> list[Pose]:
        """(x, y, yaw) of every solid."""
        return np.concatenate([self.positions[frame], self.yaws[frame, :, None]], 1).tolist()

    def centres(self) -> np.ndarray:
        """The projected centres of the solids, (T, N, 2): column and row from the picture's centre, in picture heights.

        They do not depend on the resolution: a pixel position is (W / 2 + H column, H / 2 + H row)."""
        heights = np.array([HALF_SIZES[shape] for shape in self.shapes])
        centres = np.concatenate([self.positions, np.broadcast_to(heights, self.yaws.shape)[..., None]], -1)
        return Camera(8).project(centres) / 8 - 0.5

    def flow(self, i: int, j: int, resolution: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Exact optical flow from frame i to frame j: (flow, visible).

        flow, float32 (2, H, W), x then y, in px: the displacement from frame i to frame j of the surface point seen at
        each pixel's centre in frame i; 0 on the floor. Warping frame j by it gives frame i, which is the convention of
        SPyNet(reference=i, support=j). visible, bool (H, W): whether that point is inside the picture of frame j and
        not occluded there. Only cubes rotate."""
        camera = Camera(resolution)
        columns, rows = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        here = np.stack([columns.ravel(), rows.ravel()], 1)
        rays = camera.directions(here[:, 0], here[:, 1])
        depths, owners = camera.cast(self.solids, self.poses(i), rays)
        points = np.array(EYE) + (depths * rays).T
        for owner, ((x, y, yaw), (x_then, y_then, yaw_then)) in enumerate(
            zip(self.poses(i), self.poses(j), strict=True)
        ):
            mine = owners == owner
            turn = yaw_then - yaw
            rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            points[mine, :2] = (points[mine, :2] - [x, y]) @ rotation + [x_then, y_then]
        there = camera.project(points)
        rays_then = camera.directions(there[:, 0], there[:, 1])
        depths_then, _ = camera.cast(self.solids, self.poses(j), rays_then)
        in_picture = ((there >= 0) & (there <= [camera.width, camera.height])).all(1)
        visible = in_picture & (depths_then > (points - np.array(EYE)) @ FORWARD - 1e-3)
        flow = (there - here).T.reshape(2, camera.height, camera.width)
        return flow.astype(np.float32), visible.reshape(camera.height, camera.width)

    def ground_truth(self) -> dict[str, Any]:
        """The full state of the world as JSON values; tracks are lists by frame, then by object, with 5 decimals.

        Keys: seed, index, num_frames, fps; objects [{shape, colour, material, radius, height, mass}]; positions,
        velocities and yaws like the attributes; centres (see `centres`); collisions [{frame, objects: [i, j]}]."""
        tracks = {
            "positions": self.positions,
            "velocities": self.velocities,
            "yaws": self.yaws,
            "centres": self.centres(),
        }
        return {
            "seed": self.seed,
            "index": self.index,
            "num_frames": self.num_frames,
            "fps": FPS,
            "objects": [
                {
                    "shape": shape,
                    "colour": colour,
                    "material": material,
                    "radius": round(footprint_radius(shape), 5),
                    "height": 2 * HALF_SIZES[shape],
                    "mass": MASSES[material],
                }
                for shape, colour, material in zip(self.shapes, self.colours, self.materials, strict=True)
            ],
            **{name: track.round(5).tolist() for name, track in tracks.items()},
            "collisions": [{"frame": frame, "objects": [i, j]} for frame, i, j in self.collisions],
        }


def render_clip(world: CollisionWorld, resolution: int | tuple[int, int]) -> np.ndarray:
    """Render the world's video, clip_u8 (T, H, W, 3).

    resolution: an int for a square or (height, width), as for Camera. Raises ValueError for a side below 8 px. Ours."""
    camera = Camera(resolution)
    return np.stack([camera.render(world.solids, world.poses(frame)) for frame in range(world.num_frames)])


def _video_path(out: Path, index: int) -> Path:
    first = index - index % VIDEOS_PER_FOLDER
    return out / f"video_{first:05d}-{first + VIDEOS_PER_FOLDER:05d}" / f"video_{index:05d}.mp4"


def _is_written(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether this video exists. Raises ValueError if a video with other settings has its name."""
    if not path.exists():
        return False
    truth_path = path.with_suffix(".json")
    if not truth_path.exists():
        raise ValueError(
            f"{path} exists without {truth_path.name}, so it is not a video of this data set; choose another folder"
        )
    truth = read_json(truth_path)
    for name, wanted in recipe.items():
        found = truth.get(name) if isinstance(truth, dict) else None
        if found != wanted:
            raise ValueError(f"{path} has {name} {short(found)}, not {wanted}; choose another folder or remove it")
    return True


def _write_one(out: Path, recipe: dict[str, Any], index: int) -> None:
    world = CollisionWorld(recipe["seed"], index, recipe["num_frames"])
    path = _video_path(out, index)
    height, width = recipe["resolution"]
    frames = render_clip(world, (height, width))
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**world.ground_truth(), "resolution": recipe["resolution"]}))
    write_video(path, frames, fps=FPS)  # last, so that every video has its ground truth


def write_dataset(
    out: str | Path,
    num_videos: int,
    num_frames: int = 128,
    resolution: int | tuple[int, int] = 64,
    seed: int = 0,
    start: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Write videos start ... start + num_videos - 1 in CLEVRER's layout, with a ground-truth JSON file for each.

    The files are OUT/video_00000-01000/video_00000.mp4 and so on, 1000 per folder; video_00000.json has `ground_truth`
    and the resolution [height, width]. Files are written atomically and existing videos are kept. With more than one
    worker, processes are spawned, so the calling script needs `if __name__ == "__main__"`. Raises ValueError for
    invalid numbers, if `out` cannot be a folder, and if it contains a video with other settings. Ours."""
    if not 1 <= num_videos <= LARGEST:
        raise ValueError(f"num_videos is {num_videos}; give 1 to {LARGEST}")
    out, camera = Path(out), Camera(resolution)
    CollisionWorld(seed, start, num_frames)  # raises for invalid numbers before anything is written
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be used as an output folder ({error.strerror}); choose another path") from error
    recipe = {"seed": seed, "num_frames": num_frames, "resolution": [camera.height, camera.width]}
    missing = [index for index in range(start, start + num_videos) if not _is_written(_video_path(out, index), recipe)]
    write = partial(_write_one, out, recipe)
    with tqdm(total=num_videos, initial=num_videos - len(missing), unit="video", disable=not progress or None) as bar:
        if min(workers, len(missing)) <= 1:
            for index in missing:
                write(index)
                bar.update()
        else:
            for _ in in_processes(write, missing, min(workers, len(missing))):
                bar.update()


def repeat_first_frames(dataset: Path, out: Path) -> None:
    """Write the baseline without motion: the first frame of each video of a data set, repeated. Ours.

    The files are OUT/video_00000.mp4 and so on, in the order of the videos and with the same lengths."""
    for i, path in enumerate(sorted(dataset.rglob("*.mp4"))):
        clip_u8 = read_video(path)
        write_video(out / f"video_{i:05d}.mp4", np.repeat(clip_u8[:1], len(clip_u8), axis=0))
