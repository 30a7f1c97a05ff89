#!/usr/bin/env bash
# One run on all hosts of a TPU VM slice: asks for the slice as a queued resource, installs the project, runs, collects
# the output, and does so again when the slice was preempted. The run goes on from its last checkpoint.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE [OPTION ...] -- COMMAND [ARGUMENT ...]

Runs  python -m t5x_selfimprove COMMAND ARGUMENT ...  on every host of the slice; each finds out by itself which process
it is. The run directory must be on a disk that all hosts share: --setup mounts it. Output is in LOGS/ATTEMPT, a file a
host. A signal to this script (SIGTERM, SIGUSR1, Ctrl-C) goes to all hosts: the run saves at its next boundary.

  --name NAME          of the queued resource and of its node; one that is there is used
  --zone ZONE          for example us-west4-a
  --type TYPE          accelerator type, for example v5litepod-64
  --version VERSION    of the TPU's software (default: the one of the type's generation)
  --project PROJECT    default: gcloud's
  --spot               may be preempted, costs less
  --setup COMMAND      run on every host after the installation, such as 'sudo mount -t nfs SERVER:/runs /mnt/runs'
  --logs DIR           default runs/logs
  --restarts N         how often the slice is asked for, or the run started, again (default 20)
  --delete             deletes the queued resource when the run is done
  --help               this text

Exit code: 0 done; 75 stopped as asked and saved; 76 lost too often; else that of the process that failed.
TEXT
}

stop() {
  printf 'launch/tpu_vm.sh: %s\n' "$1" >&2
  exit 2
}

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
name='' zone='' type='' version='' project='' spot='' setup='' logs=runs/logs restarts=20 delete=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    --spot | --delete) printf -v "${1#--}" 1 && shift ;;
    --name | --zone | --type | --version | --project | --setup | --logs | --restarts)
      [ $# -gt 1 ] || stop "$1 has no value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --*=*) option=${1%%=*} value=${1#*=} && shift && set -- "$option" "$value" "$@" ;;
    *) stop "no option '$1'; the command comes after --  (launch/tpu_vm.sh --help)" ;;
  esac
done
for option in name zone type; do
  [ -n "${!option}" ] || stop "--$option is missing (launch/tpu_vm.sh --help)"
done
[ $# -gt 0 ] || stop 'no command after --  (launch/tpu_vm.sh --help)'
[[ $restarts =~ ^[0-9]+$ ]] || stop "--restarts needs a whole number, not '$restarts'"
if [ -z "$version" ]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v[234]-*) version=tpu-ubuntu2204-base ;;
    *) stop "--version is missing: no software is known here for --type '$type' (gcloud compute tpus versions list)" ;;
  esac
fi
wait_seconds=${T5X_SELFIMPROVE_RESTART_SECONDS:-30}
where=(--zone="$zone" ${project:+--project="$project"})

queued() {
  gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"
}

# everywhere COMMAND [OPTION ...]: on all hosts at once.
everywhere() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1" "${@:2}" </dev/null
}

# again WHY: one of the restarts; ends the script where none is left, or it was asked to stop.
again() {
  [ -z "$asked" ] || exit 75
  if [ "$restarts" = 0 ]; then
    printf 'launch/tpu_vm.sh: %s; no restart is left\n' "$1" >&2
    exit 76
  fi
  restarts=$((restarts - 1))
  printf '%s; again (%d more times)\n' "$1" "$restarts" >&2
  sleep "$wait_seconds"
}

# ready: returns when the slice is there; asks for it where it is not, or was taken away.
ready() {
  local state said=''
  while :; do
    [ -z "$asked" ] || exit 75
    state=$(queued describe --format='value(state.state)' 2>/dev/null || true)
    [ "$state" = "$said" ] || printf 'queued resource %s: %s\n' "$name" "${state:-not there}" >&2
    said=$state
    case $state in
      ACTIVE) return ;;
      SUSPENDED | FAILED)
        queued delete --force --quiet >&2 || true
        again "the slice is $state"
        ;;
      '')
        if queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} >&2
        then
          sleep "$wait_seconds"
        else
          again 'the slice could not be asked for'
        fi
        ;;
      *) sleep "$wait_seconds" ;; # waiting, being made, being taken away
    esac
  done
}

# What a host does to install: the project, in its .venv. The TPU's software of some generations has an older Python than
# the project needs; uv brings one.
# shellcheck disable=SC2016  # for the host
make='. launch/environment.sh
if ! (find_python) >/dev/null 2>&1; then
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv python install 3.12
  T5X_SELFIMPROVE_PYTHON=$(~/.local/bin/uv python find 3.12)
fi
make_environment tpu'

# install: the project as it is here, with what it needs, on all hosts.
install() {
  local archive done=0
  archive=$(mktemp)
  tar -C "$root" -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude='./.*_cache' \
    --exclude=__pycache__ .
  gcloud compute tpus tpu-vm scp "$archive" "$name:project.tar.gz" "${where[@]}" --worker=all </dev/null >&2 || done=$?
  rm -f "$archive"
  [ "$done" = 0 ] || return "$done"
  everywhere "mkdir -p project && tar -C project -xzf project.tar.gz && cd project &&
bash -ec $(printf %q "$make")${setup:+ && $setup}" >&2
}

asked=
# shellcheck disable=SC2317,SC2329  # called by trap
pass_on() {
  asked=1
  everywhere "kill -$1 \$(cat project/process)" >/dev/null 2>&1 &
}
for signal in TERM USR1 INT; do
  # shellcheck disable=SC2064  # now
  trap "pass_on ${signal/INT/TERM}" "$signal"
done

# What a host does: ends what a lost connection may have left there, runs, tells the exit code.
printf -v command '%q ' .venv/bin/python -m t5x_selfimprove "$@"
run="cd project || exit
if [ -e process ] && grep -q t5x_selfimprove /proc/\$(cat process)/cmdline 2>/dev/null; then
  kill -KILL \$(cat process) && sleep 2
fi
PYTHONUNBUFFERED=1 $command&
echo \$! >process
wait \$!
code=\$?
echo \"exit code \$code\"
exit \$code"

# run_once FOLDER: on all hosts, until the last has ended; prints the exit codes that they told of, 76 where none came.
run_once() {
  local running log code
  set -m # a process group of its own: Ctrl-C reaches the run as a request to save, and gcloud not at all
  everywhere "$run" --output-directory="$1" >&2 &
  set +m
  running=$!
  while :; do
    wait "$running" || true
    kill -0 "$running" 2>/dev/null || break # a signal ends the waiting, not the run
  done
  for log in "$1"/*.log; do
    code=$(sed -n 's/^exit code \([0-9]*\)$/\1/p' "$log" 2>/dev/null | tail -n 1)
    [ -n "$code" ] || printf '%s has no exit code; it ends with: %s\n' "$log" "$(tail -n 1 "$log" 2>/dev/null)" >&2
    printf '%s\n' "${code:-76}"
  done
}

attempt=0
while :; do
  ready
  status=76
  if install; then
    folder=$logs/$attempt
    while [ -e "$folder" ]; do # of an earlier start of this script
      attempt=$((attempt + 1)) folder=$logs/$attempt
    done
    mkdir -p "$folder"
    run_once "$folder" >"$folder/exit_codes"
    read -ra codes <<<"$(sort -n "$folder/exit_codes" | paste -sd' ' -)"
    printf 'exit codes: %s (output in %s)\n' "${codes[*]}" "$folder" >&2
    # What failed by itself comes before what was lost, that before what stopped as asked.
    status=0
    for code in "${codes[@]}"; do
      case $code in
        0) ;;
        75) if [ "$status" = 0 ]; then status=75; fi ;;
        76 | 12[89] | 1[3-9]?) if [ "$status" = 0 ] || [ "$status" = 75 ]; then status=76; fi ;;
        *) status=$code ;;
      esac
    done
  fi
  if [ -n "$asked" ]; then break; fi
  # What stopped without being asked here was told to by the machines; another failure is ours, and would come again.
  case $status in
    75) again 'the machines asked the run to stop' ;;
    76) again 'the run was lost' ;;
    *) break ;;
  esac
done
[ "$status" != 0 ] || [ -z "$delete" ] || queued delete --force --quiet >&2
exit "$status"
