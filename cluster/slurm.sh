#!/usr/bin/env bash
# A run on Slurm: a Ray cluster for one job. From the project's folder on shared storage, where it is installed:
#   sbatch --nodes=5 --gpus-per-node=8 cluster/slurm.sh recipes/demo.yaml --set run.name=second
#   sbatch --nodes=5 --gpus-per-node=8 cluster/slurm.sh --resume runs/second
# The first LEARNER_NODES nodes (1) hold the learner, all others generators; a single node holds both.
#SBATCH --job-name=iris-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
set -euo pipefail
set -m # background processes can then be interrupted

export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # Ray ends after the run: nothing is left to wait for
ray get-auth-token --generate >/dev/null # in the home folder, which all nodes share

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
learner_nodes=${LEARNER_NODES:-1}
port=$((20000 + SLURM_JOB_ID % 20000))
read -r ip _ < <(hostname --ip-address)
export RAY_ADDRESS="$ip:$port"

# Custom Ray resources of the node with this number. They say where; CPUs, GPUs and memory say how many.
resources() {
    if ((${#nodes[@]} == 1)); then
        echo '{"learner": 1000, "generators": 1000}'
    elif (($1 < learner_nodes)); then
        echo '{"learner": 1000}'
    else
        echo '{"generators": 1000}'
    fi
}

rays=()
trap 'kill "${rays[@]}" 2>/dev/null; wait' EXIT

# Not `ray symmetric-run`: it gives all nodes the same resources, and ends with `ray stop`, which ends every
# Ray of this user on the node.
ports=(--min-worker-port=0 --max-worker-port=0) # any that is free
env -u RAY_ADDRESS ray start --head --node-ip-address="$ip" --port="$port" --dashboard-port=$((port + 1)) \
    --ray-client-server-port=$((port + 2)) --num-cpus="$SLURM_CPUS_ON_NODE" --resources="$(resources 0)" \
    "${ports[@]}" --block &
rays+=($!)
for ((i = 1; i < ${#nodes[@]}; i++)); do
    # shellcheck disable=SC2016 # $SLURM_CPUS_ON_NODE is that node's
    srun --nodes=1 --ntasks=1 --nodelist="${nodes[i]}" bash -c \
        'ray start --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_ON_NODE" "$@" --block' \
        ray "--resources=$(resources "$i")" "${ports[@]}" &
    rays+=($!)
done

python - "${#nodes[@]}" <<'PYTHON'
"""Wait until all nodes have joined."""
import sys, time
import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
there = 0
while there < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"waited 300 s for {wanted} Ray nodes, {there} joined: look for their errors above")
    time.sleep(1)
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        there = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        pass  # the head is starting
PYTHON

# Slurm signals this script 300 s before the time limit: the run then stops at a checkpoint and can be resumed.
iris-ray run "$@" --set learner.resources.learner=1 --set generation.resources.generators=1 &
run=$!
trap 'kill -USR1 "$run"' USR1
trap 'kill -INT "$run"' INT
while kill -0 "$run" 2>/dev/null; do
    status=0
    wait "$run" || status=$?
done
exit "$status"
