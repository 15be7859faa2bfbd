"""Metrics that compare a generated video with the ground truth of the embedded world. Ours.

A motion generator continues the first frame of a `CollisionWorld`'s video. These metrics locate the solids in each
frame from its pixels only, in the same way for real and generated videos. They report how the solids move and which of
them keep their colour and outline.

    scores = world_scores([clips_u8], [world_of("video_00007.mp4")])  # clips_u8 (K, T, H, W, 3)
    print(scores.still_there, scores.centroid_error, displacement_distance(scores.displacements, real.displacements))

A pixel with a scaled floor colour is floor, possibly in shadow. Any other pixel belongs to the solid that is nearest by
its colour in frame 0 and its position in the previous frame. The choice of solids and frames to measure depends only on
the world.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter
from scipy.stats import wasserstein_distance

from vidm.files import read_json
from vidm.world import STAGE_CENTRE, CollisionWorld
from vidm.world_render import EYE, HALF_SIZES, Camera, Pose, Solid, intersect

LONGEST = 10_000  # frames of a world, which is simulated again
RAYS = 3  # rays per pixel and axis for true outlines

# Lengths are in picture heights, and areas in squared picture heights: 1/32 is a pixel of a 32 x 32 video.
MIN_AREA = 6 / 32**2  # smallest area of a trackable solid in frame 0
MAX_MOVE = 3 / 32  # largest expected movement between frames; the fastest solids move about 2 / 32
MARGIN = 1 / 32  # searched around an outline, for edge pixels that are mixed with the floor
OUTLINE_REACH = 1 / 4  # half the side of a square that contains any solid's outline

# Colour distances are in grey levels (0 to 255), after the best scaling of the colour within these bounds.
FLOOR_SCALES = (0.55, 1.15)  # from the darkest shadow to slightly brighter floor
FACE_SCALES = (0.6, 1.5)  # from a solid's darkest side to its lightest
FLOOR_NOISE = 8.0  # a pixel this close to the floor's colour is floor; mp4 compression causes about this distance
FULL_CONTRAST = 0.8  # a pixel with this share of a solid's contrast to the floor counts fully as the solid's
OTHER_COLOUR = 60.0  # colour differences are capped at this value, so that the position decides between poor matches
MIN_CONTRAST = 20.0  # smallest contrast between the floor and a trackable solid
MIN_DIFFERENCE = 20.0  # smallest difference between a trackable solid and any other

VISIBLE_SHARE = 0.6  # a solid is expected in a frame if this share of its outline is in view in the true frame
FOUND_SHARE = 0.35  # a solid is found if pixels of its colour cover this share of its outline's area
SAME_COLOUR = 15.0  # largest distance at which a colour counts as kept
SAME_SHAPE = 0.5  # smallest intersection over union at which an outline counts as kept
SHIFTS = np.arange(-6, 7) / 4  # px by which outlines are shifted to find the best fit


class Targets(NamedTuple):
    """The N solids of a world that can be tracked in its videos, and their true properties.

    floor (H, W, 3): the empty picture; colours (M, 3) and contrasts to the floor (M,) of all M solids of the world;
    indices (N,) of the trackable ones among them; visible (T, N) bool: whether most of the solid is in view in the true
    frame; centres (T, N, 2): the true centres, column and row in px from the top left corner; heights (N,) of the
    centres above the floor, in units. In frame 0: depths (N,); areas (N,) of the whole solids, in px; outlines
    (N, S, S) of 0 and 1, with RAYS samples per px and axis."""

    floor: np.ndarray
    colours: np.ndarray
    contrasts: np.ndarray
    indices: np.ndarray
    visible: np.ndarray
    centres: np.ndarray
    heights: np.ndarray
    depths: np.ndarray
    areas: np.ndarray
    outlines: np.ndarray


def _line_distance(pixels: np.ndarray, colours: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
    """The distance of pixels (..., 3) to the nearest scaled colour, with the scale within bounds."""
    best = ((pixels * colours).sum(-1) / (colours * colours).sum(-1)).clip(*scales)
    return np.linalg.norm(pixels - best[..., None] * colours, axis=-1)


def _depths(camera: Camera, rows: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The depth along the camera's axis of points with given picture rows and given heights above the floor."""
    return (heights - EYE[2]) / camera.directions(np.zeros_like(rows), rows)[2]


def _coverage(camera: Camera, solids: Sequence[Solid], poses: Sequence[Pose]) -> np.ndarray:
    """The share of each pixel that each solid covers: (N, H, W)."""
    columns, rows = ((np.arange(side * RAYS) + 0.5) / RAYS for side in (camera.width, camera.height))
    rays = camera.directions(*np.meshgrid(columns, rows)).astype(np.float32).reshape(3, -1)
    mine = camera.cast(solids, poses, rays)[1] == np.arange(len(solids))[:, None]
    return mine.reshape(-1, camera.height, RAYS, camera.width, RAYS).mean((2, 4))


def _outline(camera: Camera, solid: Solid, pose: Pose, centre: np.ndarray) -> np.ndarray:
    """A solid's whole outline, including parts that are occluded or outside the picture: (S, S) of 0 and 1."""
    half = round(OUTLINE_REACH * camera.height * RAYS)
    offsets = (np.arange(-half, half) + 0.5) / RAYS
    rays = camera.directions(*np.meshgrid(centre[0] + offsets, centre[1] + offsets)).reshape(3, -1)
    return np.isfinite(intersect(solid.shape, pose, rays)).reshape(2 * half, 2 * half).astype(float)


def _mean_colour(frame: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The mean colour (3,) of the pixels of a frame (H, W, 3) that a solid covers by 90 %, or else covers most."""
    return frame[cover >= min(0.9, cover.max())].mean(0)


def _colours(camera: Camera, world: CollisionWorld, frame: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Colours (N, 3) of all solids in the frame; a solid that is hardly visible is rendered at the stage's centre."""
    colours = []
    for mine, solid in zip(cover, world.solids, strict=True):
        if mine.sum() >= MIN_AREA * camera.height**2:
            colours.append(_mean_colour(frame, mine))
        else:
            alone = [solid], [(*STAGE_CENTRE, 0.0)]
            colours.append(_mean_colour(camera.render(*alone).astype(float), _coverage(camera, *alone)[0]))
    return np.stack(colours)


def _trackable(colours: np.ndarray, floor: np.ndarray, areas: np.ndarray, min_area: float) -> np.ndarray:
    """Indices (N,) of large enough solids that differ from the floor and all others; areas (T, M) in view, in px."""
    differences = _line_distance(colours[:, None], colours, FACE_SCALES)
    differences = np.minimum(differences, differences.T)
    np.fill_diagonal(differences, np.inf)
    differences[:, areas.max(0) == 0] = np.inf
    contrasts = _line_distance(colours, floor.mean((0, 1)), FLOOR_SCALES)
    distinct = (contrasts >= MIN_CONTRAST) & (differences.min(1) >= MIN_DIFFERENCE)
    return np.flatnonzero(distinct & (areas[0] >= min_area))


def find_targets(first_u8: np.ndarray, world: CollisionWorld) -> Targets:
    """The Targets of a world; its frame 0, uint8 (H, W, 3), provides the colours. Ours."""
    camera, poses = Camera(first_u8.shape[:2]), world.poses(0)
    floor, rendered = (camera.render(*scene).astype(float) for scene in (([], []), (world.solids, poses)))
    cover = np.stack([_coverage(camera, world.solids, world.poses(n)) for n in range(world.num_frames)])
    areas_in_view = cover.sum((2, 3))
    # The rendered colours decide which solids are tracked, so that a video's compression cannot change the choice.
    true_colours, colours = (_colours(camera, world, frame, cover[0]) for frame in (rendered, first_u8.astype(float)))
    indices = _trackable(true_colours, floor, areas_in_view, MIN_AREA * camera.height**2)

    centres = world.centres()[:, indices] * camera.height + [camera.width / 2, camera.height / 2]
    heights = np.array([HALF_SIZES[world.shapes[i]] for i in indices])
    depths = _depths(camera, centres[..., 1], heights)
    outlines = [_outline(camera, world.solids[i], poses[i], at) for i, at in zip(indices, centres[0], strict=True)]
    areas = np.array([outline.sum() / RAYS**2 for outline in outlines])
    return Targets(
        floor=floor,
        colours=colours,
        contrasts=_line_distance(colours, floor.mean((0, 1)), FLOOR_SCALES),
        indices=indices,
        visible=areas_in_view[:, indices] >= VISIBLE_SHARE * areas * (depths[0] / depths) ** 2,
        centres=centres,
        heights=heights,
        depths=depths[0],
        areas=areas,
        outlines=np.array(outlines),
    )


@dataclass(frozen=True)
class SolidTracks:
    """The tracks of N target solids in one video, measured from its pixels.

    positions (T, N, 2): column and row of the centre of the visible part, in px from the top left corner, or the last
    known position of a solid that is not found. areas (T, N): the visible part as a share of the whole solid's area at
    that depth. colour_distances (N,), in grey levels without brightness, and shape_overlaps (N,), intersection over
    union in [0, 1], compare the last frame with frame 0; NaN for solids that are not found in the last frame."""

    positions: np.ndarray
    areas: np.ndarray
    colour_distances: np.ndarray
    shape_overlaps: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether each solid is found, (T, N) bool."""
        return self.areas >= FOUND_SHARE

    @property
    def displacements(self) -> np.ndarray:
        """Distances in px, (M,), that solids move between consecutive frames in which they are found."""
        moves = np.linalg.norm(np.diff(self.positions, axis=0), axis=-1)
        return moves[self.found[1:] & self.found[:-1]]


def _follow(frames: np.ndarray, targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions (T, N, 2) and areas (T, N) as in SolidTracks; for the last frame, the solids' scales (N,) relative to
    frame 0 and their shares of each pixel (N, H, W)."""
    _, height, width, _ = frames.shape
    camera, columns, rows = Camera((height, width)), np.arange(width) + 0.5, np.arange(height) + 0.5
    radii = 1.3 * np.sqrt(targets.areas / np.pi)  # large enough for a cube's corners
    contrasts = FULL_CONTRAST * targets.contrasts[targets.indices, None, None]
    colour_costs = _line_distance(frames[:, None], targets.colours[:, None, None], FACE_SCALES) / OTHER_COLOUR
    from_floor = _line_distance(frames, targets.floor, FLOOR_SCALES)
    position, lost = targets.centres[0], np.zeros(len(targets.indices))
    positions, areas = [], []
    for colour_cost, contrast in zip(colour_costs.clip(max=1), from_floor, strict=True):
        here = position
        for slack in (MARGIN + MAX_MOVE * (1 + lost), MARGIN):  # a wide search, then a narrow one
            scale = targets.depths / _depths(camera, here[:, 1], targets.heights)
            reach = (radii * scale + slack * height)[:, None, None]
            away = ((columns - here[:, 0, None, None]) ** 2 + (rows[:, None] - here[:, 1, None, None]) ** 2) / reach**2
            cost = colour_cost + 1  # untracked solids have no known position and can appear anywhere
            cost[targets.indices] = np.where(away <= 1, colour_cost[targets.indices] + away, np.inf)
            # The second condition is for pixels where all costs are infinite.
            mine = (cost.argmin(0) == targets.indices[:, None, None]) & (away <= 1)
            share = mine * ((contrast - FLOOR_NOISE) / (contrasts - FLOOR_NOISE)).clip(0, 1)
            total = share.sum((1, 2))
            moments = np.stack([share.sum(1) @ columns, share.sum(2) @ rows], -1)
            here = np.where(total[:, None] > 0, moments / total.clip(1e-9)[:, None], here)
        areas.append(total / (targets.areas * scale**2))
        found = areas[-1] >= FOUND_SHARE
        position, lost = np.where(found[:, None], here, position), np.where(found, 0, lost + 1)
        positions.append(position)
    return np.stack(positions), np.stack(areas), scale, share


def _overlap(outline: np.ndarray, scale: float, position: np.ndarray, share: np.ndarray, free: np.ndarray) -> float:
    """Soft intersection over union of a solid's pixels (H, W) and its scaled outline at the shift that fits best.

    Pixels that are not `free`, because they belong to another solid, are ignored."""
    rows, columns = np.indices(share.shape) + 0.5
    reach = len(outline) / 2 / RAYS
    near = free & (np.maximum(np.abs(columns - position[0]), np.abs(rows - position[1])) < reach)
    centres = position[::-1, None, None] + np.stack(np.meshgrid(SHIFTS, SHIFTS)).reshape(2, -1, 1)  # row, column
    points = (np.stack([rows[near], columns[near]])[:, None] - centres) * (RAYS / scale) + len(outline) / 2 - 0.5
    moved = map_coordinates(uniform_filter(outline, round(RAYS / scale)), points, order=1)
    mine = share[near]
    return float((np.minimum(moved, mine).sum(1) / np.maximum(moved, mine).sum(1)).max())


def track_solids(clip_u8: np.ndarray, targets: Targets) -> SolidTracks:
    """Track the target solids in a video, uint8 (T, H, W, 3), T > 0, that begins with their frame 0. Ours."""
    frames = clip_u8.astype(float)
    positions, areas, scales, shares = _follow(frames, targets)
    floor_only = _line_distance(frames[-1], targets.floor, FLOOR_SCALES) <= FLOOR_NOISE
    colour_distances, shape_overlaps = np.full((2, len(targets.indices)), np.nan)
    for i in np.flatnonzero(areas[-1] >= FOUND_SHARE):
        colour = targets.colours[targets.indices[i]]
        colour_distances[i] = _line_distance(_mean_colour(frames[-1], shares[i]), colour, FACE_SCALES)
        free = floor_only | (shares[i] > 0)
        shape_overlaps[i] = _overlap(targets.outlines[i], scales[i], positions[-1, i], shares[i], free)
    return SolidTracks(positions, areas, colour_distances, shape_overlaps)


@dataclass(frozen=True)
class WorldScores:
    """The scores of videos that continue the first frames of worlds.

    still_there: the share of the num_solids solids visible in the true last frames that is found in the generated ones.
    Of the solids found, colour_kept and shape_kept: the shares whose colour and outline are close to those in frame 0;
    shape_overlap: the mean intersection over union. All are in [0, 1]; the last three are NaN if no solid is found.
    centroid_error (T,): the mean distance in px of visible solids from their true centres, in the best of each world's
    videos; mean_centroid_error (T,): the same over all videos; a lost solid counts at its last known position.
    displacements (M,): the movements of all solids between consecutive frames, in px."""

    still_there: float
    colour_kept: float
    shape_kept: float
    shape_overlap: float
    centroid_error: np.ndarray
    mean_centroid_error: np.ndarray
    displacements: np.ndarray
    num_solids: int


def _mean(values: np.ndarray) -> float:
    """The mean, or NaN if there are no values (without numpy's warning)."""
    return float(values.mean()) if len(values) else float("nan")


def world_scores(clips_u8: Sequence[np.ndarray], worlds: Sequence[CollisionWorld]) -> WorldScores:
    """Compare videos with the worlds whose first frames they continue.

    clips_u8: for each world, K videos of its first frame, uint8 (K, T, H, W, 3). T is the same for all worlds and at
    most their length. Raises ValueError if no solid can be tracked. Ours."""
    found, colour_distances, shape_overlaps, displacements, best, mean, counts = [], [], [], [], [], [], []
    for clips, world in zip(clips_u8, worlds, strict=True):
        targets = find_targets(clips[0, 0], CollisionWorld(world.seed, world.index, clips.shape[1]))
        tracks = [track_solids(clip_u8, targets) for clip_u8 in clips]
        for track in tracks:
            kept = targets.visible[-1] & track.found[-1]
            found.append(kept[targets.visible[-1]])
            colour_distances.append(track.colour_distances[kept])
            shape_overlaps.append(track.shape_overlaps[kept])
            displacements.append(track.displacements)
        gaps = np.stack([np.linalg.norm(track.positions - targets.centres, axis=-1) for track in tracks])
        sums = np.where(targets.visible, gaps, 0).sum(2)  # (K, T)
        best.append(sums[sums.sum(1).argmin()])
        mean.append(sums.mean(0))
        counts.append(targets.visible.sum(1))
    all_found, overlaps = np.concatenate(found), np.concatenate(shape_overlaps)
    if len(all_found) == 0:
        raise ValueError(f"no solid can be tracked in any of the {len(worlds)} worlds; give more worlds")
    count = np.sum(counts, 0).astype(float)
    count[count == 0] = np.nan
    return WorldScores(
        still_there=_mean(all_found),
        colour_kept=_mean(np.concatenate(colour_distances) <= SAME_COLOUR),
        shape_kept=_mean(overlaps >= SAME_SHAPE),
        shape_overlap=_mean(overlaps),
        centroid_error=np.sum(best, 0) / count,
        mean_centroid_error=np.sum(mean, 0) / count,
        displacements=np.concatenate(displacements),
        num_solids=len(all_found),
    )


def displacement_distance(one: np.ndarray, two: np.ndarray) -> float:
    """The 1-D Wasserstein distance, in px, between two non-empty sets of displacements (M,). Ours."""
    return float(wasserstein_distance(one, two))


def world_of(path: str | Path) -> CollisionWorld:
    """Re-create the world of a video from the ground-truth .json file that `write_dataset` wrote for it.

    Raises ValueError with the name of that file if it is missing or has other content. Ours."""
    truth_path = Path(path).with_suffix(".json")
    try:
        truth = read_json(truth_path)
        recipe = [truth[name] for name in ("seed", "index", "num_frames")]
        if not all(type(number) is int for number in recipe) or recipe[-1] > LONGEST:
            raise ValueError("seed, index and num_frames are not the numbers of a video")
        return CollisionWorld(*recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{truth_path}: not the ground truth of an embedded world's video ({error!r})") from error
