"""Video inception score of a folder of generated videos; --help lists all flags.

python scripts/evaluate_VIS.py -dir2 generated -n 16 -r 128
"""

from vidm.commands import evaluate_vis

if __name__ == "__main__":
    evaluate_vis()
