#!/usr/bin/env bash
# launch/ssh.sh against two real sshd on this machine, two "hosts" of loopback: the tiny run, asked to save in the
# middle, gone on with, a host killed, started again by the script, done. Needs root and Debian's openssh-server.
#
#   tests/launch/real_ssh.sh [PYTHON]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "${1:-$(command -v python)}")
place=$(mktemp -d)
started=()
# shellcheck disable=SC2317,SC2329  # called by trap
end() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  echo "left in $place"
}
trap end EXIT

ssh-keygen -q -t ed25519 -N '' -f "$place/key"
mkdir -p /run/sshd # sshd wants it
for number in 0 1; do
  ssh-keygen -q -t ed25519 -N '' -f "$place/host$number.key"
  cat >"$place/sshd$number" <<TEXT
Port $((2200 + number))
ListenAddress 127.0.0.1
HostKey $place/host$number.key
AuthorizedKeysFile $place/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile $place/sshd$number.pid
TEXT
  cat >>"$place/config" <<TEXT
Host host$number
  HostName 127.0.0.1
  Port $((2200 + number))
  User $(id -un)
  IdentityFile $place/key
  StrictHostKeyChecking no
  UserKnownHostsFile $place/known
  LogLevel ERROR
TEXT
  "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$place/sshd$number" >"$place/sshd$number.log" 2>&1 &
  started+=($!)
done
sleep 1
export T5X_SELFIMPROVE_SSH="ssh -F $place/config -o BatchMode=yes" T5X_SELFIMPROVE_RESTART_SECONDS=1 JAX_PLATFORMS=cpu

mapfile -t initial < <("$python" -c 'import sys; from tests import tiny_run
print(*tiny_run.pretrain_arguments(sys.argv[1], session__Place__tensorboard=False), sep="\n")' "$place/initial")
mapfile -t improve < <("$python" -c 'import sys; from tests import tiny_run
print(*tiny_run.improve_arguments(*sys.argv[1:], session__Place__cpu_devices=1, session__Place__tensorboard=False,
                                  train__Improve__rounds=6), sep="\n")' "$place/run" "$place/initial")
"$python" -m t5x_selfimprove "${initial[@]}" >"$place/initial.log" 2>&1

# begin RESTARTS: starts the run, in the background.
begin() {
  launch/ssh.sh --hosts host0,host1 --coordinator 127.0.0.1:8476 --directory "$PWD" --python "$python" \
    --logs "$place/logs" --restarts "$1" -- "${improve[@]}" >>"$place/out" 2>&1 &
  launcher=$!
}

# until_round NUMBER: waits until its samples are written.
until_round() {
  until [ -e "$place/run/samples/round_000$1.parquet" ] || ! kill -0 "$launcher" 2>/dev/null; do sleep 0.1; done
}

began=$SECONDS
begin 0
until_round 1
kill -TERM "$launcher"
code=0
wait "$launcher" || code=$?
echo "asked to save: exit code $code"
[ "$code" = 75 ]

begin 1
until_round 4
kill -KILL "$(cat "/tmp/t5x_selfimprove.$(id -un).$launcher".*.1)" # the number that host1 noted
code=0
wait "$launcher" || code=$?
echo "host1 killed, started again: exit code $code after $((SECONDS - began)) s in all"
grep -E 'exit codes|stopped as|is gone|resumed|started? again|starting again|after round|report' "$place/out" || cat "$place/out"
wc -l "$place"/logs/run.*.log
[ "$code" = 0 ] && [ -e "$place/run/report.html" ] && echo 'done'
