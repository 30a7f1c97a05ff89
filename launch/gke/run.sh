#!/usr/bin/env bash
# One run on a Kubernetes cluster with the JobSet controller: fills in a manifest of this folder and applies it.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/gke/run.sh --name NAME --image IMAGE --hosts N [OPTION ...] -- COMMAND [ARGUMENT ...]

Runs  python -m t5x_selfimprove COMMAND ARGUMENT ...  in N pods, on the cluster that kubectl is set to. Killed or
preempted pods are started again, all together, and the run goes on from its last checkpoint. Its run directory must be
under runs/, which is the volume of the claim, shared by all pods (Filestore, GCS Fuse).

  --kind tpu|gpu         which manifest (default tpu)
  --name NAME            of the JobSet
  --image IMAGE          of launch/Dockerfile
  --hosts N              pods: hosts of the slice, or GPU nodes
  --chips N              TPU chips or GPUs of a host (default: 4 TPU chips, 8 GPUs)
  --accelerator TYPE     default: tpu-v5-lite-podslice, or nvidia-h100-80gb
  --topology AxB         of the slice (tpu alone; 8x8 is 64 chips)
  --claim NAME           PersistentVolumeClaim for runs/ (default: runs)
  --restarts N           default 20
  --grace SECONDS        between SIGTERM and SIGKILL (default 600)
  --print                prints the manifest and applies nothing
  --logs                 follows the output of the pods once they run
TEXT
}

stop() {
  printf 'launch/gke/run.sh: %s\n' "$1" >&2
  exit 2
}

folder=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
kind=tpu name='' image='' hosts='' chips='' accelerator='' topology='' claim=runs restarts=20 grace=600 print='' logs=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    --print | --logs) printf -v "${1#--}" 1 && shift ;;
    --kind | --name | --image | --hosts | --chips | --accelerator | --topology | --claim | --restarts | --grace)
      [ $# -gt 1 ] || stop "$1 has no value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --*=*) option=${1%%=*} value=${1#*=} && shift && set -- "$option" "$value" "$@" ;;
    *) stop "no option '$1'; the command comes after --  (launch/gke/run.sh --help)" ;;
  esac
done
for option in name image hosts; do
  [ -n "${!option}" ] || stop "--$option is missing (launch/gke/run.sh --help)"
done
[ $# -gt 0 ] || stop 'no command after --  (launch/gke/run.sh --help)'
case $kind in
  tpu) [ -n "$topology" ] || stop '--topology is missing, for example 8x8' ;;
  gpu) ;;
  *) stop "--kind is tpu or gpu, not '$kind'" ;;
esac
for option in hosts restarts grace chips; do
  [[ ${!option:-1} =~ ^[0-9]+$ ]] || stop "--$option needs a whole number, not '${!option}'"
done

manifest=$(<"$folder/$kind.yaml")
# fill WORD VALUE
fill() {
  manifest=${manifest//"{$1}"/"$2"}
}
arguments=''
for word in "$@"; do
  word=${word//\\/\\\\}
  arguments+=${arguments:+, }\"${word//\"/\\\"}\" # a string of JSON is one of YAML
done
if [ "$kind" = tpu ]; then
  fill CHIPS "${chips:-4}"
  fill ACCELERATOR "${accelerator:-tpu-v5-lite-podslice}"
else
  fill CHIPS "${chips:-8}"
  fill ACCELERATOR "${accelerator:-nvidia-h100-80gb}"
fi
fill NAME "$name"
fill IMAGE "$image"
fill HOSTS "$hosts"
fill TOPOLOGY "$topology"
fill CLAIM "$claim"
fill RESTARTS "$restarts"
fill GRACE "$grace"
fill ARGUMENTS "[$arguments]" # last: it may hold braces

if [ -n "$print" ]; then
  printf '%s\n' "$manifest"
  exit
fi
printf '%s\n' "$manifest" | kubectl apply -f -
echo "state: kubectl get jobset $name    output: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name --prefix"
echo "end: kubectl delete jobset $name"
if [ -n "$logs" ]; then
  kubectl wait --for=condition=Ready pod -l "jobset.sigs.k8s.io/jobset-name=$name" --timeout=30m
  exec kubectl logs -f -l "jobset.sigs.k8s.io/jobset-name=$name" --prefix --max-log-requests="$hosts"
fi
