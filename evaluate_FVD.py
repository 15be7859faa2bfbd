"""Frechet video distance between two folders of videos; --help lists all flags.

python evaluate_FVD.py -dir1 real -dir2 generated -n 16 -r 64
"""

from vidm.commands import evaluate_fvd

if __name__ == "__main__":
    evaluate_fvd()
