"""Solids that slide, brake and collide on a floor, simulated as discs seen from above.

Coulomb friction with the floor slows each disc, collisions are elastic, and friction between two discs in contact can
make a solid spin about its vertical axis. No time step is longer than the time in which any pair could meet, so discs
neither tunnel nor overlap. Ours.

    discs = Discs(radii, masses, braking, turns)
    motion = simulate(discs, positions, velocities, num_frames=9, fps=25)
    motion.positions[8], motion.collisions
"""

from typing import NamedTuple

import numpy as np

TOUCH = 1e-4  # discs with a smaller gap are in contact
SHORTEST_STEP = 1e-6  # seconds; no gap shrinks by as much as TOUCH in this time, so it is safe even if safe_time is 0


class Discs(NamedTuple):
    """The constant properties of N discs.

    radii, masses (N,); braking (N,): the deceleration by friction with the floor, mu g, in units per second squared;
    turns (N,) bool: which solids a collision can make spin. A spinning solid slows down at braking / radius."""

    radii: np.ndarray
    masses: np.ndarray
    braking: np.ndarray
    turns: np.ndarray


class Motion(NamedTuple):
    """A simulated clip: positions and velocities (T, N, 2), yaws (T, N) in radians, collisions [(frame, i, j)], i < j.

    A collision's frame is the first one that shows its outcome."""

    positions: np.ndarray
    velocities: np.ndarray
    yaws: np.ndarray
    collisions: list[tuple[int, int, int]]


class _State:
    """The state of the discs at one time, and the two operations that change it."""

    def __init__(self, discs: Discs, positions: np.ndarray, velocities: np.ndarray, rubbing: float) -> None:
        self.positions, self.velocities = positions.astype(float), velocities.astype(float)
        self.yaws, self.spins = np.zeros(len(discs.radii)), np.zeros(len(discs.radii))
        self.radii, self.braking, self.rubbing = discs.radii, discs.braking, rubbing
        self.inverse_masses = 1 / discs.masses
        # A square prism inscribed in the disc has the moment m r^2 / 3; a solid that cannot turn has an infinite one.
        self.inverse_moments = np.where(discs.turns, 3 / (discs.masses * discs.radii**2), 0.0)
        self.first, self.second = np.triu_indices(len(discs.radii), 1)

    def gaps_and_closing(self) -> tuple[np.ndarray, np.ndarray]:
        """The gap between the two discs of every pair, and the speed at which it shrinks."""
        between = self.positions[self.second] - self.positions[self.first]
        distance = np.hypot(between[:, 0], between[:, 1])
        relative = self.velocities[self.first] - self.velocities[self.second]
        closing = (relative * between).sum(1) / distance
        return distance - self.radii[self.first] - self.radii[self.second], closing

    def safe_time(self) -> float:
        """Seconds during which no pair can meet.

        The distance between two discs in uniform motion is convex in time, so it stays above its tangent. Braking
        reduces it by at most a t^2 / 2, where a is the sum of both decelerations. After t seconds the gap is therefore
        at least gap - closing t - a t^2 / 2."""
        gaps, closing = self.gaps_and_closing()
        braking = self.braking * self.velocities.any(1)
        bend = braking[self.first] + braking[self.second]
        slowest = closing + np.sqrt(closing**2 + 2 * bend * gaps.clip(0))
        times = np.divide(2 * gaps.clip(0), slowest, where=slowest > 0, out=np.full_like(gaps, np.inf))
        return float(times.min(initial=np.inf))

    def advance(self, seconds: float) -> None:
        """Move the discs without collisions; exact for constant deceleration, also if a disc stops during the step."""
        speeds = np.hypot(self.velocities[:, 0], self.velocities[:, 1])
        headings = self.velocities / np.where(speeds > 0, speeds, 1)[:, None]
        travel, speeds = _brake(speeds, self.braking, seconds)
        self.positions += headings * travel[:, None]
        self.velocities = headings * speeds[:, None]
        turned, spins = _brake(np.abs(self.spins), self.braking / self.radii, seconds)
        self.yaws += np.sign(self.spins) * turned
        self.spins = np.sign(self.spins) * spins

    def collide(self, i: int, j: int) -> None:
        """Exchange the elastic impulse along the line of centres and the friction impulse across it."""
        between = self.positions[j] - self.positions[i]
        distance = np.hypot(*between)
        normal = between / distance
        tangent = np.array([-normal[1], normal[0]])
        pair = [i, j]
        # Both lever arms end at the same point, so that angular momentum is conserved exactly.
        arms = self.radii[pair] * distance / self.radii[pair].sum()
        relative = self.velocities[i] - self.velocities[j]
        inverse_mass = self.inverse_masses[pair].sum()
        push = 2 * (relative @ normal) / inverse_mass
        slip = relative @ tangent + self.spins[pair] @ arms
        # Friction stops the slip, unless Coulomb's law limits its impulse.
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
    discs: Discs, positions: np.ndarray, velocities: np.ndarray, num_frames: int, fps: float, rubbing: float = 0.25
) -> Motion:
    """Simulate the motion of N discs, starting with the given state at frame 0.

    positions, velocities (N, 2), in units and units per second; rubbing: the friction coefficient between two solids.
    Discs must not overlap at the start. The first frames do not depend on num_frames. Collisions conserve momentum and,
    without rubbing, energy. Ours."""
    state = _State(discs, positions, velocities, rubbing)
    history = [(state.positions.copy(), state.velocities.copy(), state.yaws.copy())]
    collisions: set[tuple[int, int, int]] = set()
    for frame in range(1, num_frames):
        left = 1 / fps
        while left > 0:
            step = min(left, max(state.safe_time(), SHORTEST_STEP))
            state.advance(step)
            left -= step
            while True:
                gaps, closing = state.gaps_and_closing()
                meeting = np.flatnonzero((gaps < TOUCH) & (closing > 1e-9))
                if not len(meeting):
                    break
                pair = meeting[closing[meeting].argmax()]
                i, j = int(state.first[pair]), int(state.second[pair])
                state.collide(i, j)
                collisions.add((frame, i, j))
        history.append((state.positions.copy(), state.velocities.copy(), state.yaws.copy()))
    tracks = [np.stack(track) for track in zip(*history, strict=True)]
    return Motion(tracks[0], tracks[1], tracks[2], sorted(collisions))
