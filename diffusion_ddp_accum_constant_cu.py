"""Train a VIDM motion generator; with --test, sample videos from one. Every flag: --help.

python diffusion_ddp_accum_constant_cu.py --preset tiny --data data/CLEVRER --out checkpoints
python diffusion_ddp_accum_constant_cu.py --test --resume checkpoints/checkpoint_00000100.pt --content DIR --out samples
"""

from vidm.cli import train_main

if __name__ == "__main__":
    train_main()
