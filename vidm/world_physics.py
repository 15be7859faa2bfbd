"""Solids that slide, brake and collide on a floor, seen from above as discs.

Coulomb friction with the floor slows each disc, collisions are elastic, and friction between two discs in contact may
set a solid spinning about its vertical axis. Time advances by conservative steps: none is longer than the time in which
no pair could possibly meet, so nothing tunnels and nothing overlaps. Ours.

    motion = simulate(
        positions, velocities, radii=radii, masses=masses, braking=braking, turns=turns, num_frames=9, fps=25
    )
    motion.positions[8], motion.collisions
"""

from typing import NamedTuple

import numpy as np

TOUCH = 1e-4  # discs closer than this touch
SHORTEST_STEP = 1e-6  # seconds; a pair closes far less than TOUCH in it, so going on past a graze does no harm


class Motion(NamedTuple):
    """What happened: positions and velocities (T, N, 2), yaws (T, N) in radians, collisions [(frame, i, j)] with i < j.

    A collision's frame is the first one that shows its outcome."""

    positions: np.ndarray
    velocities: np.ndarray
    yaws: np.ndarray
    collisions: list[tuple[int, int, int]]


class _Discs:
    """The state between two steps, and the two things that change it."""

    def __init__(
        self,
        positions: np.ndarray,
        velocities: np.ndarray,
        radii: np.ndarray,
        masses: np.ndarray,
        braking: np.ndarray,
        turns: np.ndarray,
        rubbing: float,
    ) -> None:
        self.positions, self.velocities = positions.astype(float), velocities.astype(float)
        self.yaws, self.spins = np.zeros(len(radii)), np.zeros(len(radii))
        self.radii, self.braking, self.rubbing = radii, braking, rubbing
        self.inverse_masses = 1 / masses
        # A square prism inscribed in the disc has the moment m r^2 / 3; what does not turn has an infinite one.
        self.inverse_moments = np.where(turns, 3 / (masses * radii**2), 0.0)
        self.first, self.second = np.triu_indices(len(radii), 1)

    def gaps_and_closing(self) -> tuple[np.ndarray, np.ndarray]:
        """For every pair: the room between the rims, and the speed at which it shrinks."""
        between = self.positions[self.second] - self.positions[self.first]
        distance = np.hypot(between[:, 0], between[:, 1])
        relative = self.velocities[self.first] - self.velocities[self.second]
        closing = (relative * between).sum(1) / distance
        return distance - self.radii[self.first] - self.radii[self.second], closing

    def safe_time(self) -> float:
        """Seconds within which no pair can meet.

        Distance under straight motion is convex in time, so it stays above its tangent; braking bends it by at most
        a t^2 / 2, a being the sum of both decelerations: gap - closing t - a t^2 / 2 > 0."""
        gaps, closing = self.gaps_and_closing()
        braking = self.braking * self.velocities.any(1)
        bend = braking[self.first] + braking[self.second]
        slowest = closing + np.sqrt(closing**2 + 2 * bend * gaps.clip(0))
        times = np.divide(2 * gaps.clip(0), slowest, where=slowest > 0, out=np.full_like(gaps, np.inf))
        return float(times.min(initial=np.inf))

    def advance(self, seconds: float) -> None:
        """Slide every disc on its own; exact for a constant deceleration, also when it stops midway."""
        speeds = np.hypot(self.velocities[:, 0], self.velocities[:, 1])
        headings = self.velocities / np.where(speeds > 0, speeds, 1)[:, None]
        travel, speeds = _brake(speeds, self.braking, seconds)
        self.positions += headings * travel[:, None]
        self.velocities = headings * speeds[:, None]
        turned, spins = _brake(np.abs(self.spins), self.braking / self.radii, seconds)
        self.yaws += np.sign(self.spins) * turned
        self.spins = np.sign(self.spins) * spins

    def collide(self, i: int, j: int) -> None:
        """Exchange the elastic impulse along the line of centres, and what friction passes on across it."""
        between = self.positions[j] - self.positions[i]
        distance = np.hypot(*between)
        normal = between / distance
        tangent = np.array([-normal[1], normal[0]])
        pair = [i, j]
        arms = self.radii[pair] * distance / self.radii[pair].sum()  # they meet, which keeps the angular momentum exact
        relative = self.velocities[i] - self.velocities[j]
        inverse_mass = self.inverse_masses[pair].sum()
        push = 2 * (relative @ normal) / inverse_mass
        slip = relative @ tangent + self.spins[pair] @ arms
        # The impulse that would stop the slip, or as much of it as Coulomb's law allows.
        stop_slip = slip / (inverse_mass + self.inverse_moments[pair] @ arms**2)
        drag = np.clip(stop_slip, -self.rubbing * push, self.rubbing * push)
        impulse = push * normal + drag * tangent
        self.velocities[i] -= impulse * self.inverse_masses[i]
        self.velocities[j] += impulse * self.inverse_masses[j]
        self.spins[pair] -= drag * arms * self.inverse_moments[pair]


def _brake(speeds: np.ndarray, decelerations: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    moving = np.minimum(
        seconds, np.divide(speeds, decelerations, where=decelerations > 0, out=np.full_like(speeds, np.inf))
    )
    return speeds * moving - decelerations * moving**2 / 2, (speeds - decelerations * moving).clip(0)


def simulate(
    positions: np.ndarray,
    velocities: np.ndarray,
    *,
    radii: np.ndarray,
    masses: np.ndarray,
    braking: np.ndarray,
    turns: np.ndarray,
    num_frames: int,
    fps: float,
    rubbing: float = 0.25,
) -> Motion:
    """Follow N discs from their first frame on.

    positions, velocities (N, 2) in units and units per second; radii, masses (N,); braking (N,) the deceleration by the
    floor, mu g, in units per second squared; turns (N,) bool: which solids a collision may set spinning (they spin down
    at braking / radius); rubbing: the friction coefficient between two solids. Discs must not overlap at the start.
    The first frames do not depend on num_frames. Collisions keep momentum and, without rubbing, energy. Ours."""
    discs = _Discs(positions, velocities, radii, masses, braking, turns, rubbing)
    history = [(discs.positions.copy(), discs.velocities.copy(), discs.yaws.copy())]
    collisions: set[tuple[int, int, int]] = set()
    for frame in range(1, num_frames):
        left = 1 / fps
        while left > 0:
            step = min(left, max(discs.safe_time(), SHORTEST_STEP))
            discs.advance(step)
            left -= step
            while True:
                gaps, closing = discs.gaps_and_closing()
                meeting = np.flatnonzero((gaps < TOUCH) & (closing > 1e-9))
                if not len(meeting):
                    break
                pair = meeting[closing[meeting].argmax()]
                i, j = int(discs.first[pair]), int(discs.second[pair])
                discs.collide(i, j)
                collisions.add((frame, i, j))
        history.append((discs.positions.copy(), discs.velocities.copy(), discs.yaws.copy()))
    tracks = [np.stack(track) for track in zip(*history, strict=True)]
    return Motion(tracks[0], tracks[1], tracks[2], sorted(collisions))
