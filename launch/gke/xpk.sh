#!/usr/bin/env bash
# One run on a cluster that xpk made: launch/gke/xpk.sh [XPK OPTION ...] -- COMMAND [ARGUMENT ...]
#
#   launch/gke/xpk.sh --cluster=mine --zone=us-west4-a --project=ours --workload=one --tpu-type=v5litepod-64 \
#       --docker-image=IMAGE_OF_LAUNCH_DOCKERFILE --storage=runs -- improve --gin_file=gin/runs/gsm8k.gin
#
# Options before -- go to  xpk workload create  as they are. Pods that are lost or preempted are started again, all
# together, and the run goes on from its last checkpoint.
set -euo pipefail

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if [ $# -lt 2 ]; then
  echo 'launch/gke/xpk.sh: no command after --, as in: ... -- improve --gin_file=gin/runs/gsm8k.gin' >&2
  exit 2
fi
shift
printf -v command '%q ' python -m t5x_selfimprove "$@"
# 75 is a run that was asked to stop and saved, 76 one that lost a process; exec passes SIGTERM on to it.
exec xpk workload create --max-restarts=20 --restart-on-exit-codes=75,76 --termination-grace-period-seconds=600 \
  "${options[@]}" --command="cd /project && exec ${command% }"
