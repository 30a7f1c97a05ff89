# shellcheck shell=bash
# What quickstart.sh and test.sh share: find Python, make the virtual environment, install the project in it, choose
# the platform. It is sourced, not run. It needs bash 3.2 or newer, and nothing of what it installs.
#
#   make_environment [EXTRA]   ready virtual environment with the project (and its extra) in it; sets PYTHON
#   choose_platform            sets PLATFORM (cpu, cuda, tpu, or what JAX_PLATFORMS says) and exports its settings
#   step, note, stop           how the scripts speak

ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
ENVIRONMENT=${T5X_SELFIMPROVE_VENV:-$ROOT/.venv}
case $ENVIRONMENT in /*) ;; *) ENVIRONMENT=$PWD/$ENVIRONMENT ;; esac
OLDEST_PYTHON=3.11
# Measured on Linux x86-64: 0.8 GB of downloads and 3.3 GB installed, both there while pip works; the rest is for runs.
# NVIDIA's libraries come on top.
INSTALL_GB=6
CUDA_GB=8
OTHER_ENVIRONMENT='Remove it, or name a folder for a new one: T5X_SELFIMPROVE_VENV=/path/to/new/folder'
# Of TensorFlow, PyTorch and JAX a small part is ever imported; compiling all of it to bytecode takes over a minute.
export PIP_NO_COMPILE=1
STEP=0
PYTHON=
PLATFORM=

step() {
  STEP=$((STEP + 1))
  printf '\n[%d] %s\n' "$STEP" "$*"
}

note() {
  printf '    %s\n' "$*"
}

# stop WHAT [LINE...]: says what is missing, then the way out, and ends the script.
stop() {
  printf '\nCannot go on: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do
    printf '    %s\n' "$line" >&2
  done
  exit 1
}

# python_version PROGRAM: prints e.g. 3.11.7; fails where the program does not run (a pyenv shim, a broken link).
python_version() {
  "$1" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null
}

new_enough() {
  local minor=${1#*.}
  [ "${1%%.*}" -eq "${OLDEST_PYTHON%%.*}" ] && [ "${minor%%.*}" -ge "${OLDEST_PYTHON#*.}" ]
}

# find_python: prints the first usable Python. It must be new enough and able to make virtual environments.
find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11 python) candidate version seen='' without_venv=''
  if [ -n "${T5X_SELFIMPROVE_PYTHON:-}" ]; then
    candidates=("$T5X_SELFIMPROVE_PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    version=$(python_version "$candidate") || continue
    if ! new_enough "$version"; then
      seen="$seen $candidate ($version)"
    elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      without_venv="$without_venv $candidate ($version)"
    else
      printf '%s\n' "$candidate"
      return
    fi
  done
  if [ -n "$without_venv" ]; then
    stop "this Python has no venv module, which makes the virtual environment:$without_venv." \
      'On Debian and Ubuntu: apt-get install python3-venv (or python3.12-venv, for that version).' \
      'Or name another Python: T5X_SELFIMPROVE_PYTHON=/path/to/python3'
  fi
  stop "Python $OLDEST_PYTHON or newer is needed; found here:${seen:- none} (looked for: ${candidates[*]})." \
    'Debian, Ubuntu: apt-get install python3 python3-venv      macOS: brew install python@3.12' \
    'conda: conda create -n python312 python=3.12 && conda activate python312' \
    'Or name one: T5X_SELFIMPROVE_PYTHON=/path/to/python3'
}

# free_gb FOLDER: whole gigabytes free where the folder is, or will be.
free_gb() {
  local folder=$1
  while [ ! -d "$folder" ]; do
    folder=$(dirname -- "$folder")
  done
  df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1048576) }'
}

# check_disk EXTRA: before anything is written.
check_disk() {
  local needed=$INSTALL_GB free place
  place=$(dirname -- "$ENVIRONMENT")
  # Adding to an installation takes little.
  ls "$ENVIRONMENT"/installed.* >/dev/null 2>&1 && needed=1
  [ "$1" != cuda ] || needed=$((needed + CUDA_GB))
  free=$(free_gb "$place")
  if [ "$free" -lt "$needed" ]; then
    stop "the installation needs $needed GB of free disk; $place has $free GB." \
      'Make room there, or put the virtual environment on another disk: T5X_SELFIMPROVE_VENV=/big/disk/venv'
  fi
  free=$(free_gb "${TMPDIR:-/tmp}")
  if [ "$free" -lt 2 ]; then
    stop "the downloads need 2 GB of free disk for a while; ${TMPDIR:-/tmp} has $free GB." \
      'Make room there, or name another folder for temporary files: TMPDIR=/big/disk/tmp'
  fi
}

# create_environment EXTRA: a virtual environment that works, made anew where an earlier attempt was cut short.
create_environment() {
  local base version
  PYTHON=$ENVIRONMENT/bin/python
  if version=$(python_version "$PYTHON"); then
    new_enough "$version" ||
      stop "the environment $ENVIRONMENT has Python $version; $OLDEST_PYTHON or newer is needed." "$OTHER_ENVIRONMENT"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null 2>&1 ||
      stop "the environment $ENVIRONMENT has no pip." "$OTHER_ENVIRONMENT"
    note "reuse $ENVIRONMENT (Python $version)"
    return
  fi
  # Emptied is only what is a virtual environment, at the place that is ours.
  if [ -n "$(ls -A -- "$ENVIRONMENT" 2>/dev/null)" ] &&
    ! { [ "$ENVIRONMENT" = "$ROOT/.venv" ] && [ -f "$ENVIRONMENT/pyvenv.cfg" ]; }; then
    stop "$ENVIRONMENT is not empty and is no working virtual environment." "$OTHER_ENVIRONMENT"
  fi
  base=$(find_python) || exit 1
  check_disk "$1"
  note "make $ENVIRONMENT with $base (Python $(python_version "$base"))"
  "$base" -m venv --clear "$ENVIRONMENT" || stop "could not make the virtual environment $ENVIRONMENT (see above)." \
    "$OTHER_ENVIRONMENT"
}

# fingerprint EXTRA: changes when an installation would do something else than the last one did.
fingerprint() {
  "$PYTHON" - "$ROOT" "$1" <<'PYTHON_CODE'
import hashlib, pathlib, sys
root, extra = sys.argv[1:]
parts = (root.encode(), extra.encode(), sys.version.encode(), pathlib.Path(root, 'setup.py').read_bytes())
print(hashlib.sha256(b'\0'.join(parts)).hexdigest())
PYTHON_CODE
}

# install_failed LOG EXTRA: the sentence for what pip said.
install_failed() {
  tail -n 12 "$1" | sed 's/^/    pip: /' >&2
  local again="Then run the same command again. The whole of what pip said: $1"
  local disk='no space left|disk quota exceeded' network='NewConnectionError|name resolution|getaddrinfo|timed out'
  network="$network|Connection (refused|reset|aborted)|Network is unreachable|ProxyError|SSLError|IncompleteRead"
  if grep -qiE "$disk" "$1"; then
    stop 'the disk ran full during the installation.' \
      'Make room, or use another disk: T5X_SELFIMPROVE_VENV, TMPDIR.' "$again"
  elif grep -qiE "$network|ConnectTimeout|RemoteDisconnected" "$1"; then
    stop 'the packages could not be downloaded: no connection to the package index.' \
      'Check the network. Behind a proxy set HTTPS_PROXY; for a mirror set PIP_INDEX_URL.' \
      "Without a network: where there is one, pip download -d wheels '$ROOT$2' setuptools wheel; bring wheels/ here," \
      'and set PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels' "$again"
  elif grep -qiE 'no matching distribution|requires a different python' "$1"; then
    stop "some package has no version for this system: Python $(python_version "$PYTHON"), $(uname -sm)." \
      'Another Python may do: remove the environment and set T5X_SELFIMPROVE_PYTHON=/path/to/python3.12' "$again"
  fi
  stop 'pip could not install the project.' "$again"
}

# install_project EXTRA: pip install -e, unless this very installation is there already.
install_project() {
  local extra=$1 target log=$ENVIRONMENT/install.log stamp=$ENVIRONMENT/installed.$1 wanted line start=$SECONDS
  target=$ROOT${extra:+[$extra]}
  wanted=$(fingerprint "$extra")
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    note 'the project and what it needs are installed'
    return
  fi
  check_disk "$extra"
  note "pip install -e '$target'   (downloads about 1 GB; one minute on a fast network)"
  rm -f "$stamp"
  if ! "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off -e "$target" 2>&1 |
    tee "$log" | while IFS= read -r line; do
      # The large ones, so that a slow network is seen to move.
      case $line in
        *'Downloading '*' MB)') note "${line#"${line%%[! ]*}"}" ;;
        'Installing collected packages'*) note 'Unpacking' ;;
      esac
    done; then
    install_failed "$log" "${extra:+[$extra]}"
  fi
  printf '%s\n' "$wanted" >"$stamp"
  # An extra brings the project itself along.
  [ -z "$extra" ] || fingerprint '' >"$ENVIRONMENT/installed."
  note "installed in $((SECONDS - start)) s"
}

make_environment() {
  # Two scripts at once must not install over each other. Reading this file is enough to hold a lock on it.
  if command -v flock >/dev/null 2>&1; then
    exec 9<"$ROOT/launch/environment.sh"
    flock -n 9 || { note 'another script is installing here; waiting for it'; flock 9 || true; }
  fi
  create_environment "${1:-}"
  install_project "${1:-}"
  exec 9<&-
}

# choose_platform: an accelerator that is there is used or the run fails; without one JAX is told not to look for it.
choose_platform() {
  if [ -n "${JAX_PLATFORMS:-}" ]; then
    PLATFORM=${JAX_PLATFORMS%%,*}
    [ "$PLATFORM" != gpu ] || PLATFORM=cuda
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    PLATFORM=cuda
  elif compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    PLATFORM=tpu
  else
    PLATFORM=cpu
  fi
  case $PLATFORM in
    cpu) export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} ;;
    *) export JAX_PLATFORMS=${JAX_PLATFORMS:-$PLATFORM,cpu} ;;
  esac
  # Transparent huge pages make XLA's freshly mapped memory on the CPU several times cheaper (glibc 2.35 or newer).
  if [ "$PLATFORM" = cpu ] && getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    case ${GLIBC_TUNABLES:-} in
      *glibc.malloc.hugetlb=*) ;;
      *) export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1 ;;
    esac
  fi
  # XLA's and TensorFlow's C++ remarks are left out; their errors are not. Set it to 0 to read everything.
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
}
