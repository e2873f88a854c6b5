#!/usr/bin/env bash
# The study on the speaking base, on one GPU machine without a network: five bases, the acceptance,
# then the arms of docs/study/preregistration_speaking.md. The same command goes on where it ended.
#   speaking_study.sh PARTS VQA_RAD RESULTS
set -uo pipefail
parts=$(realpath "$1") vqa_rad=$(realpath "$2") here=$PWD
mkdir -p "$3" && out=$(realpath "$3") work=${WORK:-/tmp/speaking_study}
mkdir -p "$work"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD:${PYTHONPATH:-}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} SLOTS=${SLOTS:-[0,0]}
steps=${ACCEPTANCE_STEPS:-600}

build() { # fold: each keeps its state every 100 steps
  python3 -m tools.build_speaking_base --parts "$parts" --vqa-rad "$vqa_rad" \
    --split "train_fold$1" ${RECIPE:-} >>"$out/base_fold$1.log" 2>&1
}
sweep() { # fold, directory, overrides
  local fold=$1 directory=$2
  shift 2
  (cd "$work" && python3 "$here/train.py" -m experiment=speaking_study "data=vqa_rad_fold$fold" \
    data.path="$vqa_rad" "hydra.sweep.dir=multirun/$directory-fold$fold" \
    "hydra.launcher.slots=$SLOTS" ${EXTRA:-} "$@" >>"$out/cells_fold$fold.log" 2>&1)
}
arm() { # fold, arm, curriculum, first seed, budgets
  sweep "$1" "study/$2" "curriculum=$3" "curriculum.name=$2" "training.max_steps=$5" \
    "seed=$(seq -s, "$4" $(($4 + ${SEEDS:-8} - 1)))"
}
fold_cells() {
  arm "$1" open_first open_first 101 200,40
  arm "$1" closed_only closed_only 201 200,40
  arm "$1" mixed mixed 301 200,40
  arm "$1" closed_half closed_only 401 20
  local seed=501
  for name in closed_first interleaved open_rehearsed open_first_restart closed_first_restart; do
    arm "$1" "$name" "$name" "$seed" 40
    seed=$((seed + 100))
  done
}
build 1 || exit 1 # first alone: all folds share its tower
for fold in 2 3 4 5; do build "$fold" & done
wait
for fold in 1 2 3 4 5; do
  sweep "$fold" accept curriculum=whole_pool "training.max_steps=$steps" \
    training.learning_rate=5e-4,1e-3 evaluation.zero_shot=true evaluation.blind=true &
done
wait
python3 -m benchmarks.speaking_study record "$work"/multirun/accept-* --out "$out/acceptance.json"
python3 -m benchmarks.speaking_study accept "$out/acceptance.json" | tee "$out/acceptance.txt"
if ! tail -n 1 "$out/acceptance.txt" | grep -q "^accepted$" && [ -z "${WITHOUT_ACCEPTANCE:-}" ]; then
  exit 1
fi
for fold in 1 2 3 4 5; do fold_cells "$fold" & done
wait
python3 -m benchmarks.speaking_study record "$work/multirun/study" --out "$out/speaking.json"
python3 -m benchmarks.speaking_study analyse "$out/speaking.json" --out "$out/speaking_analysis.json"
