"""Train a VIDM generator or, with --test, sample videos from one. All flags: --help and --test --help.

python diffusion_ddp_accum_constant_cu.py --preset tiny --data data/CLEVRER --out checkpoints
python diffusion_ddp_accum_constant_cu.py --test --resume checkpoints/checkpoint_00000100.pt --content DIR --out samples
"""

from vidm.commands import train

if __name__ == "__main__":
    train()
