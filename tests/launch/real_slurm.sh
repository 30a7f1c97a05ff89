#!/usr/bin/env bash
# launch/slurm/run.sbatch by a real SLURM on this machine alone: the tiny run in two tasks, asked to save in the middle,
# queued again, done. Needs root and Debian's slurmctld, slurmd, slurm-client and munge; everything runs on loopback and
# is ended again.
#
#   tests/launch/real_slurm.sh [PYTHON]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "${1:-$(command -v python)}")
place=$(mktemp -d)
chmod 755 "$place"
started=()
# shellcheck disable=SC2317,SC2329  # called by trap
end() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  echo "left in $place"
}
trap end EXIT

mkdir "$place/munge" "$place/state" "$place/spool"
dd if=/dev/urandom of="$place/munge/key" bs=128 count=1 status=none
chmod 700 "$place/munge"
chmod 400 "$place/munge/key"
munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/socket" --pid-file="$place/munge/pid" \
  --log-file="$place/munge/log" --seed-file="$place/munge/seed" 2>"$place/munged.log" &
started+=($!)

host=$(hostname -s)
cat >"$place/slurm.conf" <<TEXT
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# SLURM holds a job that was queued again back for as long as its old credentials are valid, two minutes by default. One
# that is started earlier, in the second that it ended in, slurmd refuses ("Job credential revoked").
AuthInfo=socket=$place/munge/socket,cred_expire=10
CryptoType=crypto/munge
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
TEXT
export SLURM_CONF=$place/slurm.conf
slurmctld -D -f "$place/slurm.conf" >"$place/slurmctld.log" 2>&1 &
started+=($!)
slurmd -D -f "$place/slurm.conf" >"$place/slurmd.log" 2>&1 &
started+=($!)
for _ in $(seq 60); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then break; fi
  sleep 1
done
sinfo

# The tiny model and run of the tests, on the CPU, one device a task.
export JAX_PLATFORMS=cpu T5X_SELFIMPROVE_PYTHON=$python PYTHONUNBUFFERED=1
mapfile -t initial < <("$python" -c 'import sys; from tests import tiny_run
print(*tiny_run.pretrain_arguments(sys.argv[1], session__Place__tensorboard=False), sep="\n")' "$place/initial")
mapfile -t improve < <("$python" -c 'import sys; from tests import tiny_run
print(*tiny_run.improve_arguments(*sys.argv[1:], session__Place__cpu_devices=1, session__Place__tensorboard=False,
                                  train__Improve__rounds=4), sep="\n")' "$place/run" "$place/initial")
"$python" -m t5x_selfimprove "${initial[@]}" >"$place/initial.log" 2>&1

job=$(sbatch --parsable --ntasks-per-node=2 --output="$place/job.log" launch/slurm/run.sbatch "${improve[@]}")
echo "job $job"
until [ -e "$place/run/samples/evaluation_0001.parquet" ] || ! squeue -h -j "$job" | grep -q .; do sleep 0.2; done
scancel --signal=USR1 "$job" # what --signal=USR1@600 does when the time is nearly over
echo 'asked to save'
last=
for _ in $(seq 1200); do
  state=$(squeue -h -o '%T %r' -j "$job" 2>/dev/null || true)
  [ "$state" = "$last" ] || echo "${state:-gone}"
  last=$state
  [ -n "$state" ] || break
  sleep 0.5
done
scontrol show job "$job" | grep -E 'JobState|Restarts|ExitCode' || true
grep -E '^job|stopped as|resumed|after round|Error|report' "$place/job.log" || cat "$place/job.log"
find "$place/run/checkpoints" -mindepth 1 -maxdepth 1 -printf 'checkpoint %f\n' | sort
grep -q "job $job, start 0: exit code 75" "$place/job.log"
grep -q "job $job, start 1: exit code 0" "$place/job.log"
[ -e "$place/run/report.html" ] && echo 'queued again and done'
