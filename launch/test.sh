#!/usr/bin/env bash
# All checks of the project: ruff, then pytest, in an environment of their own making.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

if [ "${1:-}" = --help ]; then
  cat <<'TEXT'
Usage: launch/test.sh [PYTEST ARGUMENT ...]

Makes a virtual environment where there is none, installs the project with what its tests need, checks the code's style
with ruff and runs the tests with pytest on the CPU. Arguments go to pytest: launch/test.sh tests/sampling -k greedy
Tests run in two processes; -n 0 runs them in one (for pdb). T5X_SELFIMPROVE_VENV and T5X_SELFIMPROVE_PYTHON are as in
launch/quickstart.sh.
TEXT
  exit 0
fi

# install_references: transformers, peft and PyTorch, which the models are compared with, and the compiler for TPUs. Without
# them the tests that need them are skipped, and say so.
install_references() {
  local stamp=$ENVIRONMENT/installed.references log=$ENVIRONMENT/install.references.log wanted torch=torch==2.13.0
  wanted=$(fingerprint references)
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  # On Linux the plain version brings gigabytes of CUDA along.
  [ "$(uname -s)" != Linux ] || torch=$torch+cpu
  note "pip install $torch, then -e '${ROOT}[references]'"
  if "$PYTHON" -m pip install --disable-pip-version-check --no-input -q "$torch" >"$log" 2>&1 &&
    "$PYTHON" -m pip install --disable-pip-version-check --no-input -q -e "${ROOT}[references]" >>"$log" 2>&1; then
    printf '%s\n' "$wanted" >"$stamp"
  else
    note "not installed: $(grep -m 1 ERROR "$log" || echo "see $log")"
    note "Tests beside transformers are skipped. PyTorch's CPU builds have a package index of their own (pytorch.org):"
    note 'PIP_EXTRA_INDEX_URL=... launch/test.sh'
  fi
}

export JAX_PLATFORMS=cpu
choose_platform

step 'Environment'
make_environment test
install_references
cd "$ROOT"

step 'Style: ruff check'
style=0
"$PYTHON" -m ruff check . || style=$?

step 'Tests: pytest'
tests=0
"$PYTHON" -m pytest -n 2 "$@" || tests=$?

if [ "$style" -ne 0 ]; then
  printf 'ruff found something (step 2 above); ruff check --fix mends most of it.\n' >&2
fi
exit $((tests != 0 ? tests : style))
