"""Measurements as lines of a terminal and as rows of a LaTeX table. Ours.

measured = {f"{label_of(detector)}16": compute_fvd(real, generated, detector, 16)}
print(*table_of(measured, None), sep="\n")
print(*latex_of(measured, None, (), identity_of(detector)), sep="\n")
"""

from collections.abc import Iterator, Mapping, Sequence

from vidm.floor import FLOORS, Measure
from vidm.folder_walk import count_of
from vidm.frame_metrics import FrameMetrics
from vidm.frame_size import size_text
from vidm.metric_results import FVDResult, VISResult

LATEX_COLUMNS = (
    "metric",
    "protocol",
    "N real",
    "N generated",
    "frames",
    "stride",
    "height x width",
    "repeats",
    "detector",
    "value",
)
FRAME_METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM"}

Measured = Mapping[str, FVDResult]


def number_text(value: float | None) -> str:
    """A number of a table; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.3g}"


def mark_of(found: FVDResult | Measure) -> str:
    """Return "says nothing" with the reason, or with the number of videos needed; "" for a number that does. Ours."""
    why = f"{found.needed} videos needed" if found.needed else found.says_nothing
    return why and f"says nothing: {why}"


def labelled(name: str, kind: str) -> str:
    """The label of a distance of some kind: FVD16, FVD16 kernel."""
    return name if kind == "Frechet" else f"{name} {kind}"


def _measures(measured: Measured) -> Iterator[tuple[str, FVDResult, Measure]]:
    """Yield each distance with its label: FVD16, FVD16 kernel, ..."""
    for name, result in measured.items():
        for kind, found in result.measures.items():
            yield labelled(name, kind), result, found


def _at_stride(strides: tuple[int, int]) -> str:
    real, made = strides
    return f" at stride {made}" if real == made > 1 else f" at stride {real} (real) and {made}" if real > 1 else ""


def _numbers(frames: FrameMetrics) -> str:
    """The numbers of the frames that PSNR and SSIM are means of: all but the given one."""
    last = len(frames.psnr_by_frame) - 1
    return f"1 to {last}" if last > 1 else f"{last}"


def pairs_text(frames: FrameMetrics) -> str:
    """Describe the pairs and frames of PSNR and SSIM."""
    which = "frame" if len(frames.psnr_by_frame) < 3 else "frames"
    sizes = " and ".join(map(size_text, frames.sizes))
    return (
        f"{count_of(frames.num_pairs, 'pair')} {frames.pairing}, {which} {_numbers(frames)}"
        f"{_at_stride(frames.frame_strides)}, {sizes}"
    )


def table_of(measured: Measured, frames: FrameMetrics | None, metrics: Sequence[str] = ("psnr", "ssim")) -> list[str]:
    """Return lines for a terminal: every number with its deviation over repeats, its floor and its clips.

    A floor is next to the distance that it is compared with. `metrics` names the frame metrics to print.
    """
    rows: list[tuple[str, tuple[float | None, ...], str]] = []
    for name, result, found in _measures(measured):
        real, made = result.num_samples
        stride = _at_stride(result.frame_strides)
        clips = f"{real} real and {made} generated videos, {result.num_frames} frames{stride}, {size_text(result.size)}"
        floor = found.floor, found.floor_deviation
        own = floor if found.is_whole else (None, None)
        rows.append((name, (found.value, found.deviation, *own), "; ".join(filter(None, [mark_of(found), clips]))))
        if result.matched_samples and not found.is_whole:
            real, made = result.matched_samples
            clips = f"{real} real videos against {made} generated ones, or against other real ones"
            clips += f", mean of {len(result.values)}" if found.matched_deviation is not None else ""
            rows.append((f"{name} matched", (found.matched, found.matched_deviation, *floor), clips))
    for name, label in FRAME_METRICS.items():
        if frames and name in metrics:
            rows.append((label, (getattr(frames, name), None, None, None), pairs_text(frames)))
    width = max((len(name) for name, _, _ in rows), default=0)
    columns = "value", "deviation", "floor", "deviation"
    lines = [f"{'':<{width}}{''.join(f'{column:>12}' for column in columns)}   clips"]
    for name, values, clips in rows:
        lines.append(f"{name:<{width}}{''.join(f'{number_text(value):>12}' for value in values)}   {clips}")
    kinds = dict.fromkeys(kind for result in measured.values() for kind in result.measures)
    return [*lines, *(FLOORS[kind] for kind in kinds)]


def _latex_row(
    name: str, cells: Sequence[object], strides: tuple[int, int], sizes: Sequence[tuple[int, int]], *rest: object
) -> str:
    stride = " / ".join(map(str, dict.fromkeys(strides)))
    size = " / ".join(f"${height} \\times {width}$" for height, width in sizes)
    return " & ".join(map(str, (name, *cells, stride, size, *rest))).replace("_", r"\_")


def _comment(result: FVDResult, found: Measure) -> str:
    """The floor and the mark of a number, as a comment of LaTeX."""
    notes = []
    if found.matched is not None and found.floor is not None and result.matched_samples:
        real, made = result.matched_samples
        of = "" if found.is_whole else f" for {found.matched:.4g} of {real} real and {made} generated"
        spread = "" if found.floor_deviation is None else f" +- {found.floor_deviation:.4g}"
        notes.append(f"floor {found.floor:.4g}{spread}{of}")
    if found.says_nothing:
        notes.append(mark_of(found))
    return f"  % {'; '.join(notes)}" if notes else ""


def latex_of(
    measured: Measured, frames: FrameMetrics | None, metrics: Sequence[str], detector: Mapping[str, str | None]
) -> list[str]:
    """Return rows of a LaTeX table, one per number, with what a reader needs to compare it; comments name the rest.

    `metrics` names the frame metrics to print. `detector` is its identity_of; the row has 12 digits of its sha256.
    """
    lines = [f"% {' & '.join(LATEX_COLUMNS)} \\\\"]
    for name, result, found in _measures(measured):
        digest = f"\\texttt{{{(detector['sha256'] or 'unknown')[:12]}}}"
        cells = result.protocol, *result.num_samples, result.num_frames
        repeats, spread = 1, ""  # equal draws are one
        if found.deviation is not None:
            repeats, spread = len(result.values), f" \\pm {found.deviation:#.4g}"
        row = _latex_row(name, cells, result.frame_strides, [result.size], repeats, digest)
        lines.append(f"{row} & ${found.value:#.4g}{spread}$ \\\\{_comment(result, found)}")
    for name, label in FRAME_METRICS.items():
        if frames and name in metrics:
            pairs = f"pairs {frames.pairing}", frames.num_pairs, frames.num_pairs, _numbers(frames)
            row = _latex_row(label, pairs, frames.frame_strides, frames.sizes, 1, "-")
            lines.append(f"{row} & ${getattr(frames, name):#.4g}$ \\\\")
    return lines


def text_of_vis(result: VISResult) -> list[str]:
    """Return two lines for a terminal: the score and its clips."""
    return [
        f"{result.value:.4f} +- {result.deviation:.4f} (over splits)  {result.name}",
        f"{count_of(result.num_samples, 'video')}, the first {count_of(result.num_frames, 'frame')} at "
        f"{size_text(result.size)}, {result.num_classes} classes, {count_of(result.splits, 'split')}, "
        f"seed {result.seed}, {len(result.skipped)} skipped",
    ]
