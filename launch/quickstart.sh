#!/usr/bin/env bash
# From nothing to a report: virtual environment, installation, a small model pre-trained and then improving itself.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<'TEXT'
Usage: launch/quickstart.sh [--seed N] [--run_dir DIR] [--gin.NAME=value ...]

Makes a virtual environment, installs the project in it, pre-trains a small model on a few labelled word problems, lets
it improve itself on unlabelled ones, and prints where the report is. Run again, it reuses what is there: an interrupted
run goes on where it was, a finished one only shows its result.

  --seed N            seed of the whole run: model, questions, samples (default 0)
  --run_dir DIR       where the run is kept (default runs/quickstart, or runs/quickstart_seed_N for another seed)
  --gin.NAME=value    setting of the self-improvement, as in python -m t5x_selfimprove improve; may be repeated
  --help              this text

Environment:
  T5X_SELFIMPROVE_VENV      the virtual environment to make and use (default: .venv in the project)
  T5X_SELFIMPROVE_PYTHON    the Python to make it with (default: python3 if it is new enough, else 3.13, 3.12, 3.11)
  JAX_PLATFORMS             cpu, cuda or tpu (default: the accelerator that is there, else cpu)
TEXT
}

seed=0
run_dir=
settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --seed=* | --run_dir=*)
      name=${1%%=*} value=${1#*=}
      shift
      set -- "$name" "$value" "$@"
      ;;
    --seed)
      [[ ${2:-} =~ ^[0-9]+$ ]] || stop "--seed needs a whole number, not '${2:-}'."
      seed=$((10#$2))
      shift 2
      ;;
    --run_dir)
      [ -n "${2:-}" ] || stop '--run_dir needs a folder.'
      run_dir=$2
      shift 2
      ;;
    --gin.*=*)
      settings+=("$1")
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) stop "no option '$1'." 'The options: launch/quickstart.sh --help' ;;
  esac
done
case $run_dir in
  '') if [ "$seed" = 0 ]; then run_dir=$ROOT/runs/quickstart; else run_dir=$ROOT/runs/quickstart_seed_$seed; fi ;;
  /*) ;;
  *) run_dir=$PWD/$run_dir ;;
esac

run() {
  note "$ ${PYTHON#"$ROOT/"} -m t5x_selfimprove $*"
  local status=0
  "$PYTHON" -m t5x_selfimprove "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    printf '\nThe run stopped (status %d, see above). The same command goes on from its last checkpoint.\n' "$status" >&2
    exit "$status"
  fi
}

# The main job: the one place that says what is run.
pretrain() {
  run pretrain --gin_file=gin/runs/quickstart_pretrain.gin --gin.SEED="$seed" --gin.RUN_DIR="$run_dir/pretrain"
}

improve() {
  run improve --gin_file=gin/runs/quickstart.gin --gin.SEED="$seed" --gin.RUN_DIR="$run_dir" \
    --gin.INITIAL="$run_dir/pretrain" ${settings[@]+"${settings[@]}"}
}

began=$SECONDS
choose_platform
case $PLATFORM in cuda | tpu) extra=$PLATFORM ;; *) extra= ;; esac

step 'Environment'
make_environment "$extra"
note "platform $PLATFORM"
installed=$SECONDS
cd "$ROOT"

step "Pre-train a small model on a few labelled questions (seed $seed)"
pretrain

step 'Let it improve itself on unlabelled questions'
improve

step 'Done'
note "report    $run_dir/report.html"
note "summary   $run_dir/summary.json"
note "time      $((SECONDS - installed)) s, after $((installed - began)) s for the environment"
