"""A renderer for spheres, cubes and cylinders on a floor, with closed-form ray intersections and a fixed camera.

Framing, sizes, colours and shadows follow the pictures of CLEVRER (Yi et al. 2020), which were rendered with Blender.
Colours are linear light until the last step. World units: a sphere has a diameter of 0.9; x points to the right, y away
from the camera, z up. Picture points are in pixels from the top left corner: the first pixel's centre is (0.5, 0.5).
Ours.

    camera = Camera((320, 480))
    frame = camera.render([Solid("cube", (0.5, 0.29, 0.1), metal=False)], [(x, y, yaw)])
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidm.images import LARGEST_SIDE

HALF_SIZES = {"cube": 0.4, "sphere": 0.45, "cylinder": 0.42}  # half of the width and of the height
BEVEL = 0.06  # width over which an edge is shaded as if rounded

EYE = (0.0, -9.84, 5.34)
PITCH = np.arctan2(-EYE[2], -EYE[1])  # the camera looks at the origin
FORWARD, UP = np.array([0, np.cos(PITCH), np.sin(PITCH)]), np.array([0, -np.sin(PITCH), np.cos(PITCH)])
FOCAL = 1.644  # in picture heights
NEAREST = 2.0  # everything in view on the floor is farther away than this

# For each light: the direction towards it, its share of the light on the floor, and how fast its shadow blurs with
# height. The last light is the sky, with very soft shadows. It is not exactly vertical, since a cylinder's shadow would
# then be 0 / 0.
LIGHTS = np.array([[0.75, 0.2, 1], [-0.7, -1.3, 1], [-0.6, 0.9, 1], [1e-3, 2e-3, 1]])
SHARES = np.array([0.22, 0.24, 0.1, 0.44], np.float32)
BLUR = np.array([0.18, 0.25, 0.3, 1.2], np.float32)
DEEPEST = 0.85  # the largest share of a light that a shadow removes; the rest is light reflected by other surfaces
BRIGHTNESS = 0.3  # linear radiance of a white surface that faces up
FLOOR = 0.245  # linear radiance of the floor

SAMPLES = 3  # rays per pixel and axis

# sRGB's transfer curve (IEC 61966-2-1), tabulated
_LINEAR = np.linspace(0, 1, 4096)
ENCODE = np.rint(
    255 * np.where(_LINEAR <= 0.0031308, 12.92 * _LINEAR, 1.055 * np.maximum(_LINEAR, 1e-9) ** (1 / 2.4) - 0.055)
).astype(np.uint8)

Pose = tuple[float, float, float]  # x, y, yaw


class Solid(NamedTuple):
    """One object: a key of HALF_SIZES, linear RGB in [0, 1], and whether it is polished metal (otherwise rubber)."""

    shape: str
    albedo: tuple[float, float, float]
    metal: bool


def footprint_radius(shape: str) -> float:
    """The radius of the smallest disc on the floor that contains the solid."""
    return HALF_SIZES[shape] * (2**0.5 if shape == "cube" else 1)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return cos * x - sin * y, sin * x + cos * y


def _to_solid(pose: Pose, half: float, points: np.ndarray, *directions: np.ndarray) -> list[np.ndarray]:
    """Points and directions (3, M) in the solid's own coordinates, with the origin at its centre."""
    x, y, yaw = pose
    moved = [points - np.array([[x], [y], [half]], points.dtype), *directions]
    return [np.stack([*_turn(vectors[0], vectors[1], -yaw), vectors[2]]) for vectors in moved]


def intersect(shape: str, pose: Pose, directions: np.ndarray) -> np.ndarray:
    """The distances (M,), in ray lengths, at which rays (3, M) from the eye enter a solid; inf for a miss.

    A ray is inside the solid while it is inside all its bounding surfaces: pairs of parallel planes and a quadric."""
    half = HALF_SIZES[shape]
    origin, rays = _to_solid(pose, half, np.reshape(EYE, (3, 1)).astype(directions.dtype), directions)
    flat, curved = {"cube": ([0, 1, 2], []), "cylinder": ([2], [0, 1]), "sphere": ([], [0, 1, 2])}[shape]
    enter, leave = np.full((2, directions.shape[1]), [[-np.inf], [np.inf]], directions.dtype)
    for axis in flat:
        side = np.copysign(half, rays[axis])
        with np.errstate(divide="ignore"):  # +-inf is correct for a ray parallel to the planes
            enter = np.maximum(enter, (-side - origin[axis]) / rays[axis])
            leave = np.minimum(leave, (side - origin[axis]) / rays[axis])
    if curved:
        a = (rays[curved] ** 2).sum(0)
        b = (rays[curved] * origin[curved]).sum(0) / a
        discriminant = b**2 - ((origin[curved] ** 2).sum() - half**2) / a
        root = np.sqrt(discriminant.clip(0))
        enter, leave = np.maximum(enter, -b - root), np.minimum(leave, root - b)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def surface_normals(shape: str, pose: Pose, points: np.ndarray) -> np.ndarray:
    """Unit normals (3, M) at surface points; edges are shaded as if slightly rounded, but the outline is sharp."""
    half = HALF_SIZES[shape]
    (local,) = _to_solid(pose, half, points)
    if shape != "sphere":
        size = np.abs(local)
        if shape == "cylinder":
            size[:2] = np.hypot(local[0], local[1])
        local = local / size.clip(1e-6) * (size - half + BEVEL).clip(1e-6)
    normals = local / np.linalg.norm(local, axis=0)
    return np.stack([*_turn(normals[0], normals[1], pose[2]), normals[2]])


def cast_shadow(shape: str, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of each light that a solid blocks at floor points x, y (M,): (lights, M) in [0, 1].

    A point is in shadow if the ray from it towards the light crosses the solid. The edge is blurred over a width that
    grows with the height z at which the ray, (a + z u, b + z v, z), is closest to the solid."""
    half = HALF_SIZES[shape]
    a, b = _turn(x - float(pose[0]), y - float(pose[1]), -pose[2])
    u, v = (slope[:, None].astype(x.dtype) for slope in _turn(LIGHTS[:, 0], LIGHTS[:, 1], -pose[2]))
    ends = [np.zeros(1, x.dtype), np.full(1, 2 * half, x.dtype)]
    if shape == "sphere":
        heights = [(half - a * u - b * v) / (1 + u**2 + v**2)]
    elif shape == "cylinder":
        heights = [-(a * u + b * v) / (u**2 + v**2), *ends]
    else:  # max(|a + z u|, |b + z v|) is smallest where either of them is, where they are equal, or at an end
        with np.errstate(divide="ignore", invalid="ignore"):  # light along a face or a diagonal gives no candidate
            heights = [-a / u, -b / v, (b - a) / (u - v), -(a + b) / (u + v), *ends]
    cover = np.zeros((len(LIGHTS), len(x)), x.dtype)
    for height in heights:
        z = np.fmin(np.fmax(height, 0), 2 * half)  # unlike clip, these remove NaN
        across, along = a + z * u, b + z * v
        if shape == "cube":
            outside = np.maximum(np.abs(across), np.abs(along)) - half
        else:
            outside = np.sqrt(across**2 + along**2 + (z - half) ** 2 * (shape == "sphere")) - half
        cover = np.maximum(cover, 0.5 - outside / (BLUR[:, None] * z + 0.03))
    cover = cover.clip(0, 1)
    return DEEPEST * cover * cover * (3 - 2 * cover)


def shade(solid: Solid, normals: np.ndarray, views: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Linear light (M, 3) from points with unit normals (3, M), unit views (3, M) and heights (M,) above the floor.

    Surfaces are Lambertian, with highlights; metal also mirrors. Solids cast no shadows on each other."""
    lamps = LIGHTS[:3].astype(normals.dtype)
    contact = 0.7 + 0.3 * (heights / 0.3).clip(0, 1)  # less light is reflected by the floor onto points close to it
    diffuse = SHARES[:3] @ (lamps @ normals).clip(0) + SHARES[3] * (1.02 + 0.03 * normals[2]) * contact
    mirrored = views - 2 * (views * normals).sum(0) * normals
    glints = ((lamps / np.linalg.norm(lamps, axis=1, keepdims=True)) @ mirrored).clip(0)
    albedo = np.array(solid.albedo, normals.dtype)
    if not solid.metal:
        sheen = 0.1 * SHARES[:3] @ glints**6
        return BRIGHTNESS * (diffuse[:, None] * albedo + sheen[:, None])
    # Polished metal reflects its surroundings in its own colour: the bright floor, a dim room above it, and the lamps.
    above = (0.5 + 5 * mirrored[2]).clip(0, 1)
    floor = (0.45 + 0.6 * mirrored[0] ** 2) * contact
    room = 0.2 + 0.5 * mirrored[2].clip(0) + 0.25 * mirrored[0]
    glow, spot = SHARES[:3] @ glints**10, SHARES[:3] @ glints**120
    mirror = floor * (1 - above) + room * above + glow
    return BRIGHTNESS * ((0.45 * diffuse + mirror + 4 * spot)[:, None] * albedo + (0.3 * glow + 9 * spot)[:, None])


class Camera:
    """The fixed view at one resolution: an int for a square, or (height, width).

    The vertical field of view is fixed, so a square picture is the central part of a wide one at any resolution.
    Raises ValueError for a side below 8 pixels or above LARGEST_SIDE."""

    def __init__(self, resolution: int | tuple[int, int]) -> None:
        self.height, self.width = (resolution, resolution) if isinstance(resolution, int) else resolution
        if min(self.height, self.width) < 8:
            raise ValueError(f"resolution {self.width}x{self.height} is too small; use at least 8 pixels per side")
        if max(self.height, self.width) > LARGEST_SIDE:
            raise ValueError(
                f"resolution {self.width}x{self.height} is too large; use {LARGEST_SIDE} pixels per side at most"
            )
        columns, rows = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        directions = self.directions(columns, rows)
        reach = -EYE[2] / directions[2]
        self.floor_x = (EYE[0] + reach * directions[0]).astype(np.float32)
        self.floor_y = (EYE[1] + reach * directions[1]).astype(np.float32)
        self.floor = self._light_floor(directions).astype(np.float32)

    def _light_floor(self, directions: np.ndarray) -> np.ndarray:
        # As in CLEVRER, the floor is slightly warmer in front, bluish at the far left, and dark at the far end.
        far = ((self.floor_y - 5) / 13).clip(0, 1)
        left = (-self.floor_x / 8).clip(-1, 1)
        vignette = (1 / np.linalg.norm(directions, axis=0)) ** 0.6
        level = FLOOR * vignette * (1 - 0.45 * far**1.5) * (1 + 0.06 * left)
        blueness = 0.1 * far * left.clip(0) - 0.004 * (1 - self.floor_y).clip(0)
        return level[..., None] * (1 + blueness[..., None] * np.array([-0.4, -0.1, 1.0]))

    def directions(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rays (3, ...) through picture points, with unit depth along the camera's axis."""
        right, up = (columns - self.width / 2) / (FOCAL * self.height), (self.height / 2 - rows) / (FOCAL * self.height)
        return np.stack([right, FORWARD[1] + up * UP[1], FORWARD[2] + up * UP[2]])

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) -> picture points (..., 2): column, row. Points behind the eye map far out of view."""
        seen = points - np.array(EYE)
        scale = FOCAL * self.height / (seen @ FORWARD).clip(0.1)
        return np.stack([self.width / 2 + scale * seen[..., 0], self.height / 2 - scale * (seen @ UP)], -1)

    def cast(
        self, solids: Sequence[Solid], poses: Sequence[Pose], directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest hit of each ray (3, M): its depth (M,) and the index of the solid (M,), -1 for the floor."""
        depth, nearest = -EYE[2] / directions[2], np.full(directions.shape[1], -1)
        for index, (solid, pose) in enumerate(zip(solids, poses, strict=True)):
            enter = intersect(solid.shape, pose, directions)
            nearest[enter < depth] = index
            depth = np.minimum(depth, enter)
        return depth, nearest

    def _window(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice] | None:
        """Rows and columns that contain the projection of a box, or None if it is out of view."""
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3)
        if ((corners - np.array(EYE)) @ FORWARD).min() < NEAREST:
            return None
        points = self.project(corners)
        left, top = np.floor(points.min(0)).clip(0).astype(int).tolist()
        right, bottom = np.ceil(points.max(0)).clip(0, [self.width, self.height]).astype(int).tolist()
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def _dim_floor(self, light: np.ndarray, solid: Solid, pose: Pose) -> None:
        """Reduce the light (lights, H, W) on the floor by the solid's shadow."""
        margin = footprint_radius(solid.shape) + 0.1
        height = 2 * HALF_SIZES[solid.shape]
        blur = BLUR[:, None] * height / 2
        tips = np.concatenate([-LIGHTS[:, :2] * height - blur, -LIGHTS[:, :2] * height + blur, np.zeros((1, 2))])
        low, high = tips.min(0) - margin + pose[:2], tips.max(0) + margin + pose[:2]
        window = self._window([*low, 0], [*high, 0])
        if window is not None:
            x, y = self.floor_x[window], self.floor_y[window]
            shadow = cast_shadow(solid.shape, pose, x.ravel(), y.ravel())
            light[:, window[0], window[1]] *= 1 - shadow.reshape(-1, *x.shape)

    def _paint(self, picture: np.ndarray, solid: Solid, pose: Pose) -> None:
        """Draw the solid over the linear picture (H, W, 3)."""
        radius = footprint_radius(solid.shape)
        low, high = (
            (pose[0] - radius, pose[1] - radius, 0.0),
            (pose[0] + radius, pose[1] + radius, 2 * HALF_SIZES[solid.shape]),
        )
        window = self._window(low, high)
        if window is None:
            return
        rows, columns = (
            (np.arange(side.start * SAMPLES, side.stop * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES for side in window
        )
        directions = self.directions(*np.meshgrid(columns, rows)).astype(np.float32).reshape(3, -1)
        enter = intersect(solid.shape, pose, directions)
        hit = np.isfinite(enter)
        rays = directions[:, hit]
        points = np.reshape(EYE, (3, 1)).astype(np.float32) + enter[hit] * rays
        normals = surface_normals(solid.shape, pose, points)
        samples = np.zeros((len(hit), 4), np.float32)
        samples[hit, :3] = shade(solid, normals, rays / np.linalg.norm(rays, axis=0), points[2])
        samples[hit, 3] = 1
        painted = samples.reshape(len(rows) // SAMPLES, SAMPLES, len(columns) // SAMPLES, SAMPLES, 4).mean((1, 3))
        picture[window] = picture[window] * (1 - painted[..., 3:]) + painted[..., :3]

    def render(self, solids: Sequence[Solid], poses: Sequence[Pose]) -> np.ndarray:
        """Render one frame, uint8 (H, W, 3), of solids on the floor that do not overlap."""
        light = np.ones((len(LIGHTS), self.height, self.width), np.float32)
        for solid, pose in zip(solids, poses, strict=True):
            self._dim_floor(light, solid, pose)
        picture = self.floor * np.tensordot(SHARES, light, 1)[..., None]
        # Solids are painted from far to near. A ray crosses a circle at two distances whose product is the power of the
        # eye with respect to the circle, so of two separate circles it meets the one with the smaller power first.
        powers = [
            (pose[0] - EYE[0]) ** 2 + (pose[1] - EYE[1]) ** 2 - footprint_radius(solid.shape) ** 2
            for solid, pose in zip(solids, poses, strict=True)
        ]
        for index in np.argsort(powers)[::-1]:
            self._paint(picture, solids[index], poses[index])
        return ENCODE[(picture * 4095).clip(0, 4095).astype(np.int32)]
