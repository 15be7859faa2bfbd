"""How well do videos of four times the trained length keep their solids on the embedded world?

    python benchmarks/bench_drift.py

The shipped generator continues 32 held-out first frames for 64 frames with `--anchor-every K` and 8 steps. In every
fourth frame, the solids that are visible in the true frame are searched in the generated one. The row `real` does the
same in the true videos, where a solid behind another may lose its colour, and `still` in repeated first frames.

Rows are appended to benchmarks/results/drift.jsonl; existing rows of the same weights are not computed again.
benchmarks/results_page.py writes the table and curves of docs/results/README.md from them.
"""

import argparse

import numpy as np
from ablation_table import newest_rows
from bench_ablation import NOISE, OUT, RESOLUTION, WORLD, make_data, sample, videos_in
from measuring import SAMPLING_DEVICE, append_row

from vidm.files import sha256_of
from vidm.layouts import index_clips
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.world import CollisionWorld, repeat_first_frames
from vidm.world_metrics import world_of, world_scores

NUM_VIDEOS, NUM_FRAMES, SEED = 32, 64, 30
STEPS = "8"
FRAMES = range(3, NUM_FRAMES, 4)
ANCHORS = {"anchor every 5": 5, "anchor every 15": 15}
ROWS = ("real", "still", *ANCHORS)


def scores_by_frame(clips: np.ndarray, worlds: list[CollisionWorld]) -> dict[str, list[float]]:
    """Scores of videos (N, T, H, W, 3) cut off after each of FRAMES: shares of solids found and of colours kept."""
    scores = [world_scores(list(clips[:, None, : n + 1]), worlds) for n in FRAMES]
    return {
        "found": [score.still_there for score in scores],
        "colour_kept": [score.colour_kept for score in scores],
        "num_solids": [score.num_solids for score in scores],
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with exit_on_user_error():
        keep_freed_memory()
        shipped = sha256_of([WORLD])
        rows = [row for row in newest_rows("drift") if row.get("resolution") == RESOLUTION]
        known = {row["row"] for row in rows if row["weights"] in ("", shipped)}
        real = make_data("long", NUM_VIDEOS, SEED, RESOLUTION, NUM_FRAMES)
        worlds = [world_of(path) for path in index_clips(real).paths]
        for name in [name for name in ROWS if name not in known]:
            weights = shipped if name in ANCHORS else ""
            videos = OUT / "drift" / f"{name.replace(' ', '-')}-{weights[:12] or RESOLUTION}"
            if name == "still":
                repeat_first_frames(real, videos)
            elif name in ANCHORS:
                settings = {**NOISE, "steps": STEPS, "num_frames": NUM_FRAMES, "anchor_every": ANCHORS[name]}
                sample(WORLD, videos, NUM_VIDEOS, real, **settings)
            else:
                videos = real
            row = {"row": name, "seed": 0, "weights": weights, "resolution": RESOLUTION, "frames": [*FRAMES]}
            append_row("drift", {**row, **scores_by_frame(videos_in(videos), worlds)}, SAMPLING_DEVICE)
            print(f"{name}: appended")


if __name__ == "__main__":
    main()
