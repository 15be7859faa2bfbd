"""What the embedded world's ground truth can tell of a generated video. Ours.

A motion generator continues the first frame of a `CollisionWorld`'s video. Where its solids go, which of them keep
their colour and outline and which dissolve is read from the pixels alone, of real and generated videos in the same way.

    scores = world_scores([clips_u8], [world_of("video_00007.mp4")])  # clips_u8 (K, T, H, W, 3)
    print(scores.still_there, scores.centroid_error, displacement_distance(scores.displacements, real.displacements))

A pixel that is no scale of the empty floor's colour (a shadow is darker floor) is a solid's: of the one whose colour in
frame 0 and whose place in the frame before are nearest. Which solids count, and when, depends on the world alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter
from scipy.stats import wasserstein_distance

from vidm.world import STAGE_CENTRE, CollisionWorld
from vidm.world_render import EYE, HALF_SIZES, Camera, Pose, Solid, intersect

RAYS = 3  # per pixel and axis, where true outlines are cast

# Lengths in picture heights, areas in squares of them: 1/32 is a pixel of a 32 x 32 video.
LEAST_AREA = 6 / 32**2  # of a solid that can be told in frame 0
MOST_MOVE = 3 / 32  # from a frame to the next; the fastest solids make about 2
MARGIN = 1 / 32  # around an outline, for edges that share their pixels with the floor
OUTLINE_REACH = 1 / 4  # half the side of a square that holds any solid's outline

# Distances of colours, in grey levels of 255. Scales of a colour are as good as the colour, within these bounds.
FLOOR_SCALES = (0.55, 1.15)  # the darkest shadow; nothing brightens the floor
FACE_SCALES = (0.6, 1.5)  # a solid's darkest and lightest side
FLOOR_NOISE = 8.0  # so far from it is still the floor: mp4 makes about that
FULL_CONTRAST = 0.8  # of the distance between a solid and the floor makes a pixel all the solid's
OTHER_COLOUR = 60.0  # colours farther apart are just different, and place decides
LEAST_CONTRAST = 20.0  # between the floor and a solid that can be told
LEAST_DIFFERENCE = 20.0  # between that and any other solid

SEEN_SHARE = 0.6  # of its outline must truly be in view where a solid is asked for
FOUND_SHARE = 0.35  # of its outline's area must be there for a solid to be found
SAME_COLOUR = 15.0  # at most this far apart
SAME_SHAPE = 0.5  # intersection over union, at least
SHIFTS = np.arange(-6, 7) / 4  # px by which outlines are moved to where they fit best


class Outset(NamedTuple):
    """What is known before a generated frame is looked at: N solids of the world's can be told from all else in it.

    floor (H, W, 3) the empty picture; colours (all, 3) and contrasts (all,), to the floor, of all the world's solids;
    solids (N,): which of them can be told; asked (T, N) bool: it is truly in view in that frame, mostly; places
    (T, N, 2): the world's centres, column and row in px from the top left corner; heights (N,) of the middles over the
    floor, in units; depths (N,) and areas (N,), in px, of the whole solids in frame 0; outlines (N, S, S) there, 0 or
    1, RAYS samples per px and axis."""

    floor: np.ndarray
    colours: np.ndarray
    contrasts: np.ndarray
    solids: np.ndarray
    asked: np.ndarray
    places: np.ndarray
    heights: np.ndarray
    depths: np.ndarray
    areas: np.ndarray
    outlines: np.ndarray


def _line_distance(pixels: np.ndarray, colours: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
    """How far pixels (..., 3) are from the nearest of the colours' scales within bounds."""
    best = ((pixels * colours).sum(-1) / (colours * colours).sum(-1)).clip(*scales)
    return np.linalg.norm(pixels - best[..., None] * colours, axis=-1)


def _depths(camera: Camera, rows: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """How far along the camera's axis something is that is seen in a row and hovers at a height."""
    return (heights - EYE[2]) / camera.directions(np.zeros_like(rows), rows)[2]


def _coverage(camera: Camera, solids: Sequence[Solid], poses: Sequence[Pose]) -> np.ndarray:
    """The share of each pixel that shows each solid: (N, H, W)."""
    columns, rows = ((np.arange(side * RAYS) + 0.5) / RAYS for side in (camera.width, camera.height))
    rays = camera.directions(*np.meshgrid(columns, rows)).astype(np.float32).reshape(3, -1)
    mine = camera.cast(solids, poses, rays)[1] == np.arange(len(solids))[:, None]
    return mine.reshape(-1, camera.height, RAYS, camera.width, RAYS).mean((2, 4))


def _outline(camera: Camera, solid: Solid, pose: Pose, middle: np.ndarray) -> np.ndarray:
    """A solid's whole outline, also where others or the picture's edge hide it: (S, S) of 0 and 1."""
    half = round(OUTLINE_REACH * camera.height * RAYS)
    offsets = (np.arange(-half, half) + 0.5) / RAYS
    rays = camera.directions(*np.meshgrid(middle[0] + offsets, middle[1] + offsets)).reshape(3, -1)
    return np.isfinite(intersect(solid.shape, pose, rays)).reshape(2 * half, 2 * half).astype(float)


def _mean_colour(frame: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The colour (3,) of the pixels of a frame (H, W, 3) that are a solid's alone, or the most so."""
    return frame[cover >= min(0.9, cover.max())].mean(0)


def _colours(camera: Camera, world: CollisionWorld, frame: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """All solids' colours (N, 3): in the frame or, of one that is hardly in it, as rendered in the stage's middle."""
    colours = []
    for mine, solid in zip(cover, world.solids, strict=True):
        if mine.sum() >= LEAST_AREA * camera.height**2:
            colours.append(_mean_colour(frame, mine))
        else:
            alone = [solid], [(*STAGE_CENTRE, 0.0)]
            colours.append(_mean_colour(camera.render(*alone).astype(float), _coverage(camera, *alone)[0]))
    return np.stack(colours)


def _contrasts(colours: np.ndarray, floor: np.ndarray) -> np.ndarray:
    return _line_distance(colours, floor.mean((0, 1)), FLOOR_SCALES)


def _can_be_told(colours: np.ndarray, floor: np.ndarray, visible: np.ndarray, least_area: float) -> np.ndarray:
    """The numbers (N,) of the solids that differ from the floor and from all that are ever visible, (T, all) px."""
    differences = _line_distance(colours[:, None], colours, FACE_SCALES)
    differences = np.minimum(differences, differences.T)
    np.fill_diagonal(differences, np.inf)
    differences[:, visible.max(0) == 0] = np.inf
    distinct = (_contrasts(colours, floor) >= LEAST_CONTRAST) & (differences.min(1) >= LEAST_DIFFERENCE)
    return np.flatnonzero(distinct & (visible[0] >= least_area))


def outset_of(first_u8: np.ndarray, world: CollisionWorld) -> Outset:
    """Make the Outset of a world and its frame 0, uint8 (H, W, 3), which gives the colours and nothing else. Ours."""
    camera, poses = Camera(first_u8.shape[:2]), world.poses(0)
    floor, rendered = (camera.render(*scene).astype(float) for scene in (([], []), (world.solids, poses)))
    cover = np.stack([_coverage(camera, world.solids, world.poses(n)) for n in range(world.num_frames)])
    visible = cover.sum((2, 3))
    # By the rendered colours: whom to ask must not depend on how a video was compressed.
    true_colours, colours = (_colours(camera, world, frame, cover[0]) for frame in (rendered, first_u8.astype(float)))
    solids = _can_be_told(true_colours, floor, visible, LEAST_AREA * camera.height**2)

    middles = world.centres()[:, solids] * camera.height + [camera.width / 2, camera.height / 2]
    heights = np.array([HALF_SIZES[world.shapes[i]] for i in solids])
    depths = _depths(camera, middles[..., 1], heights)
    outlines = [
        _outline(camera, world.solids[i], poses[i], middle) for i, middle in zip(solids, middles[0], strict=True)
    ]
    areas = np.array([outline.sum() / RAYS**2 for outline in outlines])
    return Outset(
        floor=floor,
        colours=colours,
        contrasts=_contrasts(colours, floor),
        solids=solids,
        asked=visible[:, solids] >= SEEN_SHARE * areas * (depths[0] / depths) ** 2,
        places=middles,
        heights=heights,
        depths=depths[0],
        areas=areas,
        outlines=np.array(outlines),
    )


@dataclass(frozen=True)
class SolidTracks:
    """Where the N solids of an Outset are in one video, by its pixels.

    places (T, N, 2): column, row of the middle of the visible part, in px from the top left corner; of a solid that is
    not found, where it was last. areas (T, N): the visible part, as a share of the whole solid's area at that distance
    from the eye. colour_distances (N,): between the colours in frame 0 and the last frame, but for brightness, in grey
    levels. shape_overlaps (N,): of the outlines, intersection over union in [0, 1]. Both NaN if lost at the end."""

    places: np.ndarray
    areas: np.ndarray
    colour_distances: np.ndarray
    shape_overlaps: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether the solid is found, (T, N) bool."""
        return self.areas >= FOUND_SHARE

    @property
    def centroids(self) -> np.ndarray:
        """The places (T, N, 2), NaN where the solid is not found."""
        return np.where(self.found[..., None], self.places, np.nan)

    @property
    def displacements(self) -> np.ndarray:
        """How far each solid moved from one frame to the next, in px, (any,): where it is found in both."""
        moves = np.linalg.norm(np.diff(self.places, axis=0), axis=-1)
        return moves[self.found[1:] & self.found[:-1]]


def _follow(frames: np.ndarray, outset: Outset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places (T, N, 2) and areas (T, N) as in SolidTracks, and for the last frame how many times larger (N,) the solids
    are than in frame 0, and the share (N, H, W) of each pixel that is theirs."""
    _, height, width, _ = frames.shape
    camera, columns, rows = Camera((height, width)), np.arange(width) + 0.5, np.arange(height) + 0.5
    radii = 1.3 * np.sqrt(outset.areas / np.pi)  # a cube's corners are inside
    contrasts = FULL_CONTRAST * outset.contrasts[outset.solids, None, None]
    colour_costs = _line_distance(frames[:, None], outset.colours[:, None, None], FACE_SCALES) / OTHER_COLOUR
    from_floor = _line_distance(frames, outset.floor, FLOOR_SCALES)
    place, lost = outset.places[0], np.zeros(len(outset.solids))
    places, areas = [], []
    for colour_cost, contrast in zip(colour_costs.clip(max=1), from_floor, strict=True):
        here = place
        for slack in (MARGIN + MOST_MOVE * (1 + lost), MARGIN):  # first all around, then closely
            scale = outset.depths / _depths(camera, here[:, 1], outset.heights)
            reach = (radii * scale + slack * height)[:, None, None]
            away = ((columns - here[:, 0, None, None]) ** 2 + (rows[:, None] - here[:, 1, None, None]) ** 2) / reach**2
            cost = colour_cost + 1  # of those whose place is not known: they may enter anywhere
            cost[outset.solids] = np.where(away <= 1, colour_cost[outset.solids] + away, np.inf)
            mine = (cost.argmin(0) == outset.solids[:, None, None]) & (away <= 1)  # nobody's, where all are infinite
            share = mine * ((contrast - FLOOR_NOISE) / (contrasts - FLOOR_NOISE)).clip(0, 1)
            total = share.sum((1, 2))
            moments = np.stack([share.sum(1) @ columns, share.sum(2) @ rows], -1)
            here = np.where(total[:, None] > 0, moments / total.clip(1e-9)[:, None], here)
        areas.append(total / (outset.areas * scale**2))
        found = areas[-1] >= FOUND_SHARE
        place, lost = np.where(found[:, None], here, place), np.where(found, 0, lost + 1)
        places.append(place)
    return np.stack(places), np.stack(areas), scale, share


def _overlap(outline: np.ndarray, scale: float, place: np.ndarray, share: np.ndarray, free: np.ndarray) -> float:
    """Soft intersection over union of a solid's pixels (H, W) and its outline, scaled, where that fits best.

    Pixels that are not free, being another solid's, do not count."""
    rows, columns = np.indices(share.shape) + 0.5
    reach = len(outline) / 2 / RAYS
    near = free & (np.maximum(np.abs(columns - place[0]), np.abs(rows - place[1])) < reach)
    shifts = np.stack(np.meshgrid(SHIFTS, SHIFTS)).reshape(2, -1, 1)  # row, column
    centres = place[::-1, None, None] + shifts
    points = (np.stack([rows[near], columns[near]])[:, None] - centres) * (RAYS / scale) + len(outline) / 2 - 0.5
    moved = map_coordinates(uniform_filter(outline, round(RAYS / scale)), points, order=1)
    mine = share[near]
    return float((np.minimum(moved, mine).sum(1) / np.maximum(moved, mine).sum(1)).max())


def track_solids(clip_u8: np.ndarray, outset: Outset) -> SolidTracks:
    """Follow the solids of an Outset through a video, uint8 (T, H, W, 3), T > 0, that begins with its frame 0. Ours."""
    frames = clip_u8.astype(float)
    places, areas, scales, shares = _follow(frames, outset)
    floor_only = _line_distance(frames[-1], outset.floor, FLOOR_SCALES) <= FLOOR_NOISE
    colour_distances, shape_overlaps = np.full((2, len(outset.solids)), np.nan)
    for i in np.flatnonzero(areas[-1] >= FOUND_SHARE):
        colour = outset.colours[outset.solids[i]]
        colour_distances[i] = _line_distance(_mean_colour(frames[-1], shares[i]), colour, FACE_SCALES)
        free = floor_only | (shares[i] > 0)
        shape_overlaps[i] = _overlap(outset.outlines[i], scales[i], places[-1, i], shares[i], free)
    return SolidTracks(places, areas, colour_distances, shape_overlaps)


@dataclass(frozen=True)
class WorldScores:
    """What was measured in the videos of some worlds.

    still_there: the share of solids, truly in view at the end, that are found in the last frame; of those,
    colour_kept, shape_kept: the shares whose colour is near that of frame 0, and whose outline fits that of frame 0,
    and shape_overlap: the mean intersection over union (NaN if none is found); all in [0, 1]. centroid_error (T,): the
    mean distance of solids, truly in view then, from the world's centres, in px, in the best of each world's videos,
    and mean_centroid_error in all of them; a lost solid counts where it was seen last. displacements (any,): of all
    solids from each frame to the next, in px. num_solids: how many still_there counts, in all videos."""

    still_there: float
    colour_kept: float
    shape_kept: float
    shape_overlap: float
    centroid_error: np.ndarray
    mean_centroid_error: np.ndarray
    displacements: np.ndarray
    num_solids: int


def _mean(values: np.ndarray) -> float:
    """NaN for none, without numpy's warning."""
    return float(values.mean()) if len(values) else float("nan")


def world_scores(clips_u8: Sequence[np.ndarray], worlds: Sequence[CollisionWorld]) -> WorldScores:
    """Measure videos against the worlds whose first frames they continue.

    clips_u8: for each world K videos of one first frame, uint8 (K, T, H, W, 3), with one T, the world's or less.
    Of the K, that of the least mean error makes centroid_error. Raises ValueError if no solid can be told. Ours."""
    found, colour_distances, shape_overlaps, displacements, best, mean, counts = [], [], [], [], [], [], []
    for clips, world in zip(clips_u8, worlds, strict=True):
        outset = outset_of(clips[0, 0], CollisionWorld(world.seed, world.index, clips.shape[1]))
        tracks = [track_solids(clip_u8, outset) for clip_u8 in clips]
        for track in tracks:
            there = outset.asked[-1] & track.found[-1]
            found.append(there[outset.asked[-1]])
            colour_distances.append(track.colour_distances[there])
            shape_overlaps.append(track.shape_overlaps[there])
            displacements.append(track.displacements)
        gaps = np.stack([np.linalg.norm(track.places - outset.places, axis=-1) for track in tracks])
        sums = np.where(outset.asked, gaps, 0).sum(2)  # (K, T)
        best.append(sums[sums.sum(1).argmin()])
        mean.append(sums.mean(0))
        counts.append(outset.asked.sum(1))
    all_found, overlaps = np.concatenate(found), np.concatenate(shape_overlaps)
    if len(all_found) == 0:
        raise ValueError(f"no solid can be told from all else in any of the {len(worlds)} worlds; give more of them")
    count = np.sum(counts, 0)
    best_error, mean_error = (
        np.divide(np.sum(e, 0), count, where=count > 0, out=np.full(len(count), np.nan)) for e in (best, mean)
    )
    return WorldScores(
        still_there=_mean(all_found),
        colour_kept=_mean(np.concatenate(colour_distances) <= SAME_COLOUR),
        shape_kept=_mean(overlaps >= SAME_SHAPE),
        shape_overlap=_mean(overlaps),
        centroid_error=best_error,
        mean_centroid_error=mean_error,
        displacements=np.concatenate(displacements),
        num_solids=len(all_found),
    )


def displacement_distance(one: np.ndarray, two: np.ndarray) -> float:
    """The 1-D Wasserstein distance, in px, between two pools of displacements, (any,) each and not empty. Ours."""
    return float(wasserstein_distance(one, two))


def world_of(path: str | Path) -> CollisionWorld:
    """Rebuild the world of a video from the ground truth that `write_dataset` put beside it, as .json.

    Raises ValueError, naming that file, where it is missing or is something else. Ours."""
    truth_path = Path(path).with_suffix(".json")
    try:
        truth = json.loads(truth_path.read_text())
        return CollisionWorld(truth["seed"], truth["index"], truth["num_frames"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{truth_path}: not the ground truth of an embedded world's video ({error!r})") from error
