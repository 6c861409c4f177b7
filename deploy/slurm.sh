#!/usr/bin/env bash
# One run on a Ray cluster of its own, made of the nodes of a Slurm job:
#   OPENAI_BASE_URL=http://gpu01:8000/v1 sbatch deploy/slurm.sh deploy/cluster.yaml ray.num_env_runners=16
# What stands behind the script's name goes to `rlprompt train`. RUN=runs/cluster/ID goes on with a run. Submit it from
# the checkout, which all nodes must see, as they must see the home folder and the run folder.
#SBATCH --job-name=rlprompt
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@600

# SIGTERM, ten minutes before the time is up, has the run stop after the iteration in progress, saved: take more minutes
# than an iteration has. The first node gives no CPUs to Ray: driver, scoring and learner need them.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
workers=$((${#nodes[@]} - 1))
if ((workers < 1)); then
    echo "error: one node is not enough; ask for two or more with --nodes" >&2
    exit 2
fi

address="${nodes[0]}:$((20000 + SLURM_JOB_ID % 20000))"  # two jobs on one node must not meet
scratch="/tmp/ray-$SLURM_JOB_ID"
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH="$HOME/.rlprompt-token-$SLURM_JOB_ID"
export RAY_AUTH_TOKEN_PATH
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2> /dev/null || true' EXIT

# With --block both end with this script, and leave other jobs' Ray on the same machines alone.
ray start --head --port="${address##*:}" --num-cpus=0 --include-dashboard=false --temp-dir="$scratch" --block &
srun --nodes="$workers" --ntasks="$workers" --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="${nodes[0]}" \
    ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$scratch" --block &

# A worker that comes before the head tries again for some time; a run refuses a cluster that is too small.
python - "$address" $((workers * SLURM_CPUS_PER_TASK)) <<'PYTHON'
import socket
import sys
import time

import ray

address, cpus = sys.argv[1], float(sys.argv[2])
host, port = address.split(":")
end, present = time.monotonic() + 300, 0.0
while present < cpus:
    if time.monotonic() > end:
        sys.exit(f"error: only {present:g} of {cpus:g} CPUs have joined {address} within five minutes")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        present = ray.cluster_resources().get("CPU", 0.0)
    except (OSError, RuntimeError):
        pass
    time.sleep(1)
PYTHON

arguments=("$@")
if [[ -n "${RUN:-}" ]]; then
    arguments+=(--resume "$RUN")
fi
rlprompt train "${arguments[@]}" ray.address="$address" --quiet &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do  # a signal ends `wait`, not the run
    code=0
    wait "$driver" || code=$?
done
exit "$code"
