#!/usr/bin/env bash
# The study on real pictures, on one GPU machine without a network: builds the small base, runs the
# baselines and the 42 cells, and keeps their records.
#   vqa_rad_study.sh RESULTS VQA_RAD        VQA_RAD holds the authors' JSON and image folder
# Environment variables set time and size, for a rehearsal on a CPU.
set -uo pipefail
out=$(realpath "$1") vqa_rad=$(realpath "$2") work=${WORK:-/tmp/study} here=$PWD
mkdir -p "$work" "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:${PYTHONPATH:-}" TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
study=(model.path="$work/small" data.path="$vqa_rad")
timeout "$((${BASE_S:-150} + 90))" python3 -m tools.build_base --size small --output "$work/small" \
  --vqa-rad "$vqa_rad" --steps "${BASE_STEPS:-700}" --batch-size "${BASE_BATCH:-192}" \
  --max-seconds "${BASE_S:-150}" --scenes "${SCENES:-3000}" --learning-rate 6e-4 2>&1 |
  tee "$out/base.log" | tail -n 4
cd "$work" || exit 1
timeout 90 python3 "$here/train.py" experiment=vqa_rad_study_baselines "${study[@]}" ${EXTRA:-} \
  >"$out/baselines.log" 2>&1
timeout "${GRID_S:-330}" python3 "$here/train.py" -m experiment=vqa_rad_study "${study[@]}" \
  "hydra.launcher.slots=${SLOTS:-[0,0,0,0,0,0]}" ${EXTRA:-} ${GRID:-} >"$out/grid.log" 2>&1
cd "$here" || exit 1
python3 benchmarks/study.py record "$work/multirun" --out "$out/vqa_rad.json"
python3 benchmarks/study.py record "$work/outputs" --out "$out/vqa_rad_baselines.json"
