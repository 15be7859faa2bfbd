#!/usr/bin/env bash
# Train on several nodes with torchrun, one process per GPU. Run the same line on every node.
#
#   scripts/train_multinode.sh NODES HOST:PORT [flags of diffusion_ddp_accum_constant_cu.py ...]
#   scripts/train_multinode.sh 4 node0:29500 --data data/CLEVRER --batch-size 256 --out checkpoints
#
# NODES is a number, or MIN:MAX for a run that continues with the nodes that are available. HOST is one of the nodes, and
# PORT a free port on it. --out must be on a disk that all nodes share: after a failure, all processes resume from its
# newest undamaged checkpoint (--resume auto). Optional environment variables (default): GPUS, processes per node (all
# GPUs, or 1 without GPUs); MAX_RESTARTS, restarts after failures (3); RUN_ID, the name of the run, which must be unique
# among runs with the same address (vidm).
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
# Each restart needs a new store: in the old one, processes would find the addresses of dead processes.
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
