#!/bin/bash
# A run on two nodes of eight GPUs. All of them read and write the run's folder, so it must be on a disk that they share:
#   sbatch recipes/cluster/slurm.sh --config recipes/gsm8k_grpo.yaml --run-dir /shared/runs/gsm8k
#SBATCH --job-name=plumbline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
# Two minutes before the end the run is asked to stop: it finishes its step and saves. Submit it again with --resume.
#SBATCH --signal=TERM@120
set -euo pipefail

NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_NODE=${NODES%%$'\n'*}  # the first line; `| head` would end scontrol by a signal, which pipefail makes an error

# One launcher on each node (ntasks-per-node), which starts a process for each of its GPUs.
srun bash -c 'accelerate launch --multi_gpu \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_NODE" --main_process_port "${MAIN_PORT:-29500}" \
    recipes/grpo_math.py "$@"' launch "$@"
