#!/usr/bin/env bash
# The study on the speaking base, on one GPU machine without a network: six bases, the acceptance,
# then the arms of docs/study/preregistration_speaking.md. The same command goes on where it ended.
#   speaking_study.sh PARTS VQA_RAD RESULTS
# SLOTS and AT_ONCE: workers per grid, and grids at once. RECIPE and EXTRA: options for all bases
# and all cells. WITHOUT_ACCEPTANCE=1 runs the arms of a base that was not accepted.
set -uo pipefail
parts=$(realpath "$1") vqa_rad=$(realpath "$2") here=$PWD
mkdir -p "$3" && out=$(realpath "$3") work=${WORK:-/tmp/speaking_study}
mkdir -p "$work"
export parts vqa_rad here out work
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD:${PYTHONPATH:-}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} SLOTS=${SLOTS:-[0]} SEEDS=${SEEDS:-8}
folds=${FOLDS:-1 2 3 4 5} pools=${POOLS:-101 102 103} at_once=${AT_ONCE:-16}
steps=${ACCEPTANCE_STEPS:-600} budgets=${BUDGETS:-200,40}

build() { # name, options: each keeps its state every 100 steps
  local name=$1
  shift
  python3 -m tools.build_speaking_base --parts "$parts" "$@" ${RECIPE:-} >>"$out/base_$name.log" 2>&1
}
build_fold() { build "fold$1" --vqa-rad "$vqa_rad" --split "train_fold$1"; }
sweep() { # directory, overrides
  (cd "$work" && python3 "$here/train.py" -m "hydra.sweep.dir=multirun/$1" \
    "hydra.launcher.slots=$SLOTS" "${@:2}" ${EXTRA:-} >>"$out/${1//\//-}.log" 2>&1)
  rm -rf "$work/multirun/$1"/*/checkpoints # a finished cell needs none; all cells fill 60 GB
}
export -f sweep
sweeps() { xargs -P "$at_once" -L 1 bash -c 'sweep "$@"' _; } # one line of arguments per sweep
arm() { # arm, curriculum, first seed, budgets: one line per fold
  local fold
  for fold in $folds; do
    echo "study/$1-fold$fold experiment=speaking_study data=vqa_rad_fold$fold 'data.path=$vqa_rad'" \
      "curriculum=$2 curriculum.name=$1 training.max_steps=$4" \
      "seed=$(seq -s, "$3" $(($3 + SEEDS - 1)))"
  done
}
phantom_arm() { # arm, first seed: one line per pool
  local pool
  for pool in $pools; do
    echo "phantom/$1-pool$pool experiment=speaking_study data=phantom data.seed=$pool" \
      "curriculum=$1 training.max_steps=$budgets seed=$(seq -s, "$2" $(($2 + SEEDS - 1)))"
  done
}
record() { python3 -m benchmarks.speaking_study record "$work/multirun/$1" --out "$out/$1.json"; }

build_fold "${folds%% *}" || exit 1 # first alone: all bases share its tower
for fold in ${folds#* }; do build_fold "$fold" & done
build phantom &
wait
for fold in $folds; do
  echo "accept/fold$fold experiment=speaking_study data=vqa_rad_fold$fold 'data.path=$vqa_rad'" \
    "curriculum=whole_pool training.max_steps=$steps training.learning_rate=5e-4,1e-3" \
    "evaluation.zero_shot=true evaluation.blind=true"
done | SLOTS=${ACCEPTANCE_SLOTS:-[0,0]} sweeps
record accept
python3 -m benchmarks.speaking_study accept "$out/accept.json" | tee "$out/acceptance.txt"
if ! tail -n 1 "$out/acceptance.txt" | grep -q "^accepted$" && [ -z "${WITHOUT_ACCEPTANCE:-}" ]; then
  exit 1
fi
{
  arm open_first open_first 101 "$budgets"
  arm closed_only closed_only 201 "$budgets"
  arm mixed mixed 301 "$budgets"
} | sweeps
record study
for claim in open_then_closed closed_then_open easy_to_hard; do
  echo "claim_$claim experiment=claim_$claim model=speaking training.learning_rate=1e-3"
done | SLOTS=${CLAIM_SLOTS:-[0,0,0,0,0]} sweeps
{
  phantom_arm open_first 101
  phantom_arm closed_only 201
  phantom_arm mixed 301
} | sweeps
record phantom
{
  arm closed_half closed_only 401 20
  seed=501
  for name in closed_first interleaved open_rehearsed open_first_restart closed_first_restart; do
    arm "$name" "$name" "$seed" 40
    seed=$((seed + 100))
  done
  arm closed_half closed_only 401 100
} | sweeps
record study
for name in study phantom; do
  python3 -m benchmarks.speaking_study analyse "$out/$name.json" --out "$out/${name}_analysis.json"
done
