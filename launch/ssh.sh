#!/usr/bin/env bash
# One run on a list of hosts: the same command on each over ssh, output by host, signals passed on, started again when a
# host was lost.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/ssh.sh --hosts HOST,HOST,... [OPTION ...] -- COMMAND [ARGUMENT ...]

Runs  python -m t5x_selfimprove COMMAND ARGUMENT ...  on every host, as the processes of one run; the first host is
process 0. Each host has the project (launch/environment.sh or the Dockerfile install it) at the same path, and all share
the run directory (NFS or the like). What each prints goes to LOGS/run.PROCESS.log and, with the host's name before
it, here. A signal to this script (SIGTERM, SIGUSR1, Ctrl-C) goes to all hosts: the run saves at its next boundary.

  --hosts A,B,...      host names as ssh takes them (user@host, names of ~/.ssh/config)
  --coordinator H:P    how the others reach the first host (default: its name and port 8476)
  --directory DIR      the project's folder on the hosts (default: the folder of this project here)
  --python PATH        Python there (default: .venv/bin/python, seen from the folder)
  --logs DIR           folder for output (default: runs/logs)
  --restarts N         start again so many times when a host was lost (exit code 76, 255 or a signal's; default 0)
  --help               this text

T5X_SELFIMPROVE_SSH is the ssh program with its options (default: ssh -o BatchMode=yes -o ServerAliveInterval=15).
Exit code: 0 all done; 75 stopped as asked and saved; 76 a host was lost; else that of the process that failed.
TEXT
}

stop() {
  printf 'launch/ssh.sh: %s\n' "$1" >&2
  exit 2
}

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
hosts='' coordinator='' directory=$root python=.venv/bin/python logs=runs/logs restarts=0
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    --hosts | --coordinator | --directory | --python | --logs | --restarts)
      [ $# -gt 1 ] || stop "$1 has no value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --*=*)
      name=${1%%=*} value=${1#*=}
      shift
      set -- "$name" "$value" "$@"
      ;;
    *) stop "no option '$1'; the command comes after --  (launch/ssh.sh --help)" ;;
  esac
done
[ -n "$hosts" ] || stop '--hosts is missing (launch/ssh.sh --help)'
[ $# -gt 0 ] || stop 'no command after --  (launch/ssh.sh --help)'
[[ $restarts =~ ^[0-9]+$ ]] || stop "--restarts needs a whole number, not '$restarts'"
IFS=, read -ra host <<<"$hosts"
coordinator=${coordinator:-${host[0]#*@}:8476}
read -ra ssh <<<"${T5X_SELFIMPROVE_SSH:-ssh -o BatchMode=yes -o ServerAliveInterval=15}"
mkdir -p "$logs"
# The hosts note their process's number here, for signals.
mark=/tmp/t5x_selfimprove.$(id -un).$$.$RANDOM

quote() {
  printf '%q ' "$@"
}

# remote NUMBER COMMAND...: what a host is asked to do. Its shell may be any that reads POSIX.
remote() {
  local number=$1 name
  shift
  printf 'echo $$ >%q && cd %q && ' "$mark.$number" "$directory"
  printf 'export T5X_SELFIMPROVE_HOSTS=%q && ' "$hosts"
  for name in JAX_PLATFORMS XLA_FLAGS LIBTPU_INIT_ARGS NCCL_DEBUG T5X_SELFIMPROVE_TRACEBACK; do
    [ -z "${!name+set}" ] || printf 'export %s=%q && ' "$name" "${!name}"
  done
  printf 'exec '
  quote "$python" -m t5x_selfimprove "$@" --coordinator="$coordinator" --processes="${#host[@]}" --process="$number"
}

asked=
# shellcheck disable=SC2317,SC2329  # called by trap
pass_on() {
  local number
  asked=1
  for number in "${!host[@]}"; do
    "${ssh[@]}" "${host[number]}" "kill -$1 \$(cat $mark.$number)" </dev/null >/dev/null 2>&1 &
  done
}
for signal in TERM USR1 INT; do
  # shellcheck disable=SC2064  # now
  trap "pass_on ${signal/INT/TERM}" "$signal"
done

# run_all COMMAND...: sets `status` from the exit codes of all hosts.
run_all() {
  local number code codes=() process=()
  for number in "${!host[@]}"; do
    (
      trap '' INT # Ctrl-C reaches the run as a request to save
      exec "${ssh[@]}" "${host[number]}" "$(remote "$number" "$@")" </dev/null
    ) > >(tee -a "$logs/run.$number.log" | sed "s/^/${host[number]//\//}: /") 2>&1 &
    process+=($!)
  done
  for number in "${!process[@]}"; do
    while :; do
      code=0
      wait "${process[number]}" || code=$?
      # A signal to this script ends the waiting, not the process.
      kill -0 "${process[number]}" 2>/dev/null || break
    done
    codes+=("$code")
  done
  # What failed by itself comes before what was lost, that before what stopped as asked.
  status=0
  for code in "${codes[@]}"; do
    case $code in
      0) ;;
      75) if [ "$status" = 0 ]; then status=75; fi ;;
      76 | 255 | 12[89] | 1[3-9]?) if [ "$status" = 0 ] || [ "$status" = 75 ]; then status=76; fi ;;
      *) status=$code ;;
    esac
  done
  printf 'exit codes: %s\n' "${codes[*]}" >&2
}

while :; do
  run_all "$@"
  if [ "$status" != 76 ] || [ "$restarts" = 0 ] || [ -n "$asked" ]; then break; fi
  restarts=$((restarts - 1))
  printf 'a host was lost; starting again (%d more times)\n' "$restarts" >&2
  sleep "${T5X_SELFIMPROVE_RESTART_SECONDS:-10}"
done
exit "$status"
