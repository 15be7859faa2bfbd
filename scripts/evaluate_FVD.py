"""The same command as evaluate_FVD.py, at its path in the original repository.

python scripts/evaluate_FVD.py -dir1 real -dir2 generated -n 16 -r 64
"""

from vidm.cli_evaluate import evaluate_fvd_main

if __name__ == "__main__":
    evaluate_fvd_main()
