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

export JAX_PLATFORMS=cpu
choose_platform

step 'Environment'
make_environment test
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
