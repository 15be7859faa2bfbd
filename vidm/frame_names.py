"""Which images of a folder are the frames of its clip, and in which order, by their names. Ours.

    frames = choose_frames(folder, ["img_9.jpg", "img_10.jpg", "x_9.jpg", "x_10.jpg"])
    frames.names     # ["img_9.jpg", "img_10.jpg"], if the images x_#.jpg are grey
    frames.note      # "img_#.jpg is read, x_#.jpg is not"

Images whose names differ in nothing but numbers are a sequence. A clip is one sequence. Beside it a folder may contain
images that belong to its frames (masks, optical flow, a copy in another format) and single images such as a cover.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from vidm.images import open_image
from vidm.video_containers import VideoError

DECIMAL, INTEGER = re.compile(r"([0-9]+(?:\.[0-9]+)?)"), re.compile(r"([0-9]+)")
GREY_MODES = ("1", "L", "LA", "P", "I", "I;16", "F")  # palettes are those of masks
MOST_WORDS = 32  # of a name, by which others are looked up: their number squared
# A longer step than this multiple of the shortest one is a gap; times in seconds are rounded.
GAP = Decimal("1.5")

Number = int | Decimal
Numbers = tuple[Number, ...]  # those in one name


class Frames(NamedTuple):
    """The names of a clip's frames in order, and a note about images that are not read and about gaps, or ''."""

    names: list[str]
    note: str


@dataclass(frozen=True, eq=False)
class _Sequence:
    """Images whose names have one pattern, such as img_#.jpg, in the order of their numbers."""

    pattern: str
    names: list[str]
    numbers: list[Numbers]

    @property
    def stem(self) -> str:
        return self.pattern.rpartition(".")[0]

    @property
    def suffix(self) -> str:
        return self.pattern.rpartition(".")[2]

    @cached_property
    def number_set(self) -> frozenset[Numbers]:
        return frozenset(self.numbers)


_in_order = attrgetter("pattern", "names")


def _number_regex(names: Sequence[str]) -> re.Pattern[str]:
    """Return the form of the numbers in these names: 0.2 after 0.16 is a decimal; 2.10 after 2.9 is two integers."""
    fractions = {number.partition(".")[2] for name in names if name.count(".") > 1 for number in DECIMAL.findall(name)}
    fractions.discard("")
    rounded = any(len(fraction) > 1 and fraction[-1] == "0" for fraction in fractions)
    return INTEGER if rounded and len(set(map(len, fractions))) > 1 else DECIMAL


def _split(name: str, regex: re.Pattern[str]) -> list[str | Number]:
    """Split a name into text, number, text, number, ..., text."""
    parts = regex.split(name)
    return [part if place % 2 == 0 else Decimal(part) if "." in part else int(part) for place, part in enumerate(parts)]


def sort_names(names: Sequence[str]) -> list[str]:
    """Return names in natural order: numbers, also decimal ones, are compared as numbers. Ours."""
    regex = _number_regex(names)
    return sorted(names, key=lambda name: (_split(name, regex), name))


def _stem_and_suffix(name: str) -> tuple[str, str]:
    stem, _, suffix = name.rpartition(".")
    return stem, "." + suffix.lower().replace("jpeg", "jpg")


def _runs(pattern: str, rows: list[tuple[Numbers, str]]) -> list[_Sequence]:
    """Return one sequence of these (numbers, name), or several if the last number that varies begins again.

    cam1_001, cam1_002, cam2_001 and cam2_002 are two sequences; 11h59 and 12h00 are one.
    """
    varying = [
        place for place, column in enumerate(zip(*(row[0] for row in rows), strict=True)) if len(set(column)) > 1
    ]
    runs = defaultdict(list)
    for numbers, name in sorted(rows):
        runs[tuple(numbers[place] for place in varying[:-1])].append((numbers, name))
    begins = {run[0][0][varying[-1]] for run in runs.values()} if varying else set()
    if len(runs) == 1 or len(begins) > 1 or min(map(len, runs.values())) == 1:
        ordered = sorted(rows)
        return [_Sequence(pattern, [name for _, name in ordered], [numbers for numbers, _ in ordered])]
    sequences = []
    for run in runs.values():
        parts = re.split(r"(?<!/)#", pattern)
        fixed = [
            "#" if place == varying[-1] or place not in varying else str(number)
            for place, number in enumerate(run[0][0])
        ]
        named = "".join(text + number for text, number in zip(parts, [*fixed, ""], strict=True))
        sequences.append(_Sequence(named, [name for _, name in run], [numbers for numbers, _ in run]))
    return sequences


def _sequences(names: Sequence[str]) -> list[_Sequence]:
    """Group names into sequences, by pattern. Two formats are one sequence unless they share a number."""
    regex = _number_regex(names)
    groups: dict[str, dict[str, list[tuple[Numbers, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        stem, suffix = _stem_and_suffix(name)
        parts = _split(stem, regex)
        # A number sign in a name is "/#" in the pattern, because no name of a file has a slash.
        pattern = "#".join(str(part).replace("#", "/#") for part in parts[::2])
        groups[pattern][suffix].append((tuple(n for n in parts[1::2] if not isinstance(n, str)), name))
    found = []
    for pattern, formats in groups.items():
        used = Counter(numbers for rows in formats.values() for numbers in {row[0] for row in rows})
        if max(used.values()) > 1:
            for suffix, rows in formats.items():
                found += _runs(pattern + suffix, rows)
        else:
            found += _runs(pattern + "/".join(sorted(formats)), [row for rows in formats.values() for row in rows])
    return sorted(found, key=_in_order)


# Images that belong to the frames of a sequence


def _is_grey(image: Path) -> bool:
    with suppress(Exception), open_image(image) as opened:  # a damaged image is reported when it is read
        return opened.mode in GREY_MODES
    return False


def _parts(stem: str) -> Iterator[str]:
    """Yield the parts of a stem: 7_left_mask has 7, 7_left, left, left_mask and mask."""
    found = islice(re.finditer("[-_. ]", stem), MOST_WORDS)
    borders = [-1, *(match.start() for match in found), len(stem)]
    for place, start in enumerate(borders):
        for end in borders[place + 1 :]:
            if end - start <= len(stem):
                yield stem[start + 1 : end]


class _Companions:
    """Says which sequences of a folder belong to frames of another one.

    Others are looked up by the parts of a name and by numbers: comparing all pairs would take hours for many files.
    """

    def __init__(self, folder: Path, sequences: Sequence[_Sequence]) -> None:
        self._by_stem: dict[str, list[_Sequence]] = defaultdict(list)
        self._by_numbers: dict[frozenset[Numbers], list[_Sequence]] = defaultdict(list)
        self._with_number: dict[Numbers, list[frozenset[Numbers]]] = defaultdict(list)
        for one in sequences:
            self._by_stem[one.stem].append(one)
            self._by_numbers[one.number_set].append(one)
        for numbers in self._by_numbers:
            for number in numbers:
                self._with_number[number].append(numbers)
        self._is_grey = cache(lambda one: _is_grey(folder / one.names[0]))
        self._including = cache(self._find_including)
        self._coloured = cache(self._find_coloured)

    def _find_including(self, numbers: frozenset[Numbers]) -> list[frozenset[Numbers]]:
        """Return the sets of numbers of sequences that include these."""
        return [other for other in min((self._with_number[n] for n in numbers), key=len) if numbers <= other]

    def _find_coloured(self, numbers: frozenset[Numbers]) -> set[str]:
        """Return the stems, but at most two, of sequences that have these numbers and are not grey."""
        stems: set[str] = set()
        for other in (one for including in self._including(numbers) for one in self._by_numbers[including]):
            if not self._is_grey(other):
                stems.add(other.stem)
            if len(stems) == 2:
                break
        return stems

    def _shorter(self, one: _Sequence) -> Iterator[_Sequence]:
        """Yield the sequences that have the numbers of one, and a part of its name as their name."""
        for part in _parts(one.stem):
            yield from (other for other in self._by_stem.get(part, ()) if one.number_set <= other.number_set)

    def is_named_after_another(self, one: _Sequence) -> bool:
        """Whether the names of numbered images, such as 7_mask.png beside 7.jpg, say that they belong to others."""
        jpgs = (other for other in self._by_stem[one.stem] if one.suffix == "png" and other.suffix == "jpg")
        if any(one.number_set <= other.number_set for other in jpgs):
            return True  # a copy or a mask: the jpg is the picture in both cases
        return bool(one.numbers[0]) and any(True for _ in self._shorter(one))

    def is_grey_beside_colour(self, one: _Sequence) -> bool:
        """Whether images are grey and others, of the same numbers or without a number, are not."""
        if not one.numbers[0]:
            shorter = list(self._shorter(one))
            return bool(shorter) and self._is_grey(one) and not all(map(self._is_grey, shorter))
        others = (other for numbers in self._including(one.number_set) for other in self._by_numbers[numbers])
        return (
            any(other.stem != one.stem for other in others)
            and self._is_grey(one)
            and any(stem != one.stem for stem in self._coloured(one.number_set))
        )


def _without_companions(folder: Path, names: Sequence[str]) -> tuple[list[_Sequence], list[_Sequence]]:
    """Return the sequences of a folder, at least one, and those that belong to the frames of another one."""
    found = _sequences(names)
    companions = set(filter(_Companions(folder, found).is_named_after_another, found))
    # The colours of a mask say nothing about a grey video.
    others = [one for one in found if one not in companions]
    companions.update(filter(_Companions(folder, others).is_grey_beside_colour, others))
    return [one for one in found if one not in companions], [one for one in found if one in companions]


# Public names


def _listed(sequences: Sequence[_Sequence]) -> str:
    shown = [one.pattern.replace("/#", "#") if len(one.names) > 1 else one.names[0] for one in sequences[:4]]
    more = [f"{len(sequences) - 4} more"] if len(sequences) > 4 else []
    return ", ".join(shown + more)


def _gaps(sequence: _Sequence) -> str:
    """Describe gaps in the numbers of a sequence whose names differ in one number; empty without gaps."""
    columns = [column for column in zip(*sequence.numbers, strict=True) if len(set(column)) > 1]
    if len(columns) != 1:
        return ""
    pairs = [(a, b) for a, b in zip(columns[0], columns[0][1:], strict=False) if a != b]
    shortest = min(b - a for a, b in pairs)
    gaps = [(a, b) for a, b in pairs if b - a > GAP * shortest]
    return (
        f"{len(gaps)} gaps in the numbers, {gaps[0][1]} follows {gaps[0][0]}".replace("1 gaps", "1 gap") if gaps else ""
    )


def choose_frames(folder: Path, names: Sequence[str]) -> Frames:
    """Choose the frames of a folder's clip from the names of its images, and order them by their numbers.

    Images that belong to frames of another sequence are left out: those with a longer name (7_mask.png beside 7.jpg),
    grey ones beside colour, and a png beside a jpg of the same name. So are single images beside a sequence. Names
    without numbers are one sequence, in alphabetical order. Raises VideoError if several sequences are left. Ours.
    """
    if not names:
        return Frames([], "")
    found, left_out = _without_companions(folder, names)
    long = [one for one in found if len(one.names) > 1]
    if long:
        left_out = sorted([*left_out, *(one for one in found if len(one.names) == 1)], key=_in_order)
        found = long
    elif not any(one.numbers[0] for one in found):
        unnumbered = sort_names([one.names[0] for one in found])
        found = [_Sequence(found[0].pattern, unnumbered, [()] * len(unnumbered))]
    if len(found) > 1:
        counts = f"{len(names)} images of {len(found)} sequences, {_listed(found)}"
        raise VideoError(f"{folder}: has {counts}, which are not one clip; give each sequence its own folder")
    note = (
        f"{_listed(found)} is read, {_listed(left_out)} {'is' if len(left_out) == 1 else 'are'} not" if left_out else ""
    )
    return Frames(found[0].names, "; ".join(filter(None, (note, _gaps(found[0])))))


def choose_images(folder: Path, names: Sequence[str]) -> Frames:
    """Choose single images, in natural order: all but those that belong to another one, as in choose_frames. Ours."""
    found, left_out = _without_companions(folder, names)
    note = f"{_listed(left_out)} not used" if left_out else ""
    return Frames(sort_names([name for one in found for name in one.names]), note)


def describe_gaps(names: Sequence[str]) -> str:
    """Return a description of gaps in the numbers of names that differ in nothing else, or ''. Ours."""
    found = _sequences(names)
    return _gaps(found[0]) if len(found) == 1 else ""


def is_numbered_through(names: Sequence[str]) -> bool:
    """Return whether images are named as tools name a video's frames: 00000, 00001, ..., or from 00001 on. Ours."""
    found = _sequences(names)
    padded = [re.search(r"[0-9]{5,}(?=\D*$)", Path(name).stem) for name in names]
    numbers = sorted(int(match[0]) for match in padded if match)
    return len(found) == 1 and len(names) > 1 and numbers in [list(range(n, n + len(names))) for n in (0, 1)]
