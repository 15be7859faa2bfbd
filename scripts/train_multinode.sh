#!/usr/bin/env bash
# Train on several nodes, one process per GPU, by torchrun: run the same line on every node.
#
#   scripts/train_multinode.sh NODES HOST:PORT [flags of diffusion_ddp_accum_constant_cu.py ...]
#   scripts/train_multinode.sh 4 node0:29500 --data data/CLEVRER --batch-size 256 --out checkpoints
#
# NODES is a number, or MIN:MAX for a run that goes on with the nodes that are there. HOST:PORT is where they meet, on
# one of them. --out must be on a disk that all nodes share: after a loss every process goes on from its newest whole
# checkpoint (--resume auto). GPUS, MAX_RESTARTS and RUN_ID may be set: processes per node (all GPUs, or 1 without any),
# restarts after a loss (3), and a name that tells runs at one address apart (vidm).
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "error: give the number of nodes and where they meet: scripts/train_multinode.sh NODES HOST:PORT [flags]" >&2
    exit 2
fi
nodes=$1
endpoint=$2
shift 2

cd "$(dirname "$0")/.."
# A new store for each restart: in the old one processes would find the addresses of those that died.
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
