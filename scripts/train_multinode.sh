#!/usr/bin/env bash
# Train on several nodes with torchrun, one process per GPU. Run the same command on every node.
#
#   scripts/train_multinode.sh NODES HOST:PORT [flags of diffusion_ddp_accum_constant_cu.py ...]
#   scripts/train_multinode.sh 4 node0:29500 --data data/CLEVRER --batch-size 256 --out checkpoints
#
# NODES is a number, or MIN:MAX to continue with fewer nodes when some are not available. HOST is one of the nodes, and
# PORT a free port on it. --out must be on a disk that all nodes share, because after a failure all processes resume
# from its newest undamaged checkpoint (--resume auto). Optional environment variables:
# GPUS           processes per node (default: the number of GPUs, or 1 without GPUs)
# MAX_RESTARTS   restarts after failures (default: 3)
# RUN_ID         the name of the run, unique among runs with the same address (default: vidm)
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "error: give the number of nodes and the address of one of them:" \
        "scripts/train_multinode.sh NODES HOST:PORT [flags]" >&2
    exit 2
fi
nodes=$1
endpoint=$2
shift 2

cd "$(dirname "$0")/.."
# Each restart needs a new store, because the old one contains the addresses of dead processes.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
gpus=${GPUS:-$(python -c "import torch; print(max(torch.cuda.device_count(), 1))")}
exec python -m torch.distributed.run \
    --nnodes "$nodes" \
    --nproc-per-node "$gpus" \
    --max-restarts "${MAX_RESTARTS:-3}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$endpoint" \
    --rdzv-id "${RUN_ID:-vidm}" \
    diffusion_ddp_accum_constant_cu.py --resume auto "$@"
