"""The same command as evaluate_FVD.py, at its path in the original repository.

python scripts/evaluate_FVD.py -dir1 real -dir2 generated -n 16 -r 64
"""

from vidm.commands import evaluate_fvd

if __name__ == "__main__":
    evaluate_fvd()
