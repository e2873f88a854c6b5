#!/usr/bin/env bash
# The study on real pictures, on one bare GPU machine: builds the small base, runs baselines and the
# 42 cells, keeps the record; then the engines' rates in what time is left.
#   study_gpu.sh RESULTS CARRIED        CARRIED holds vqa_rad/ and qwen.tiktoken
# What is said of time and size below is set by environment variables, for a rehearsal on a CPU.
set -uo pipefail
out=$(realpath "$1") carried=$(realpath "$2") work=${WORK:-/tmp/study}
mkdir -p "$work" "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:${PYTHONPATH:-}" TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
study=(model.path="$work/small" data.path="$carried/vqa_rad")
here=$PWD
step() { echo "== $1 at $SECONDS s"; }

step "base"
timeout "$((${BASE_S:-150} + 90))" python3 -m medvqa.cli build-base --size small --output "$work/small" \
  --vqa-rad "$carried/vqa_rad" --steps "${BASE_STEPS:-700}" --batch-size "${BASE_BATCH:-192}" --max-seconds "${BASE_S:-150}" \
  --scenes "${SCENES:-3000}" --learning-rate 6e-4 2>&1 | tee "$out/base.log" | tail -n 4
cd "$work" || exit 1
step "baselines"
timeout 90 python3 "$here/train.py" experiment=vqa_rad_study_baselines "${study[@]}" ${EXTRA:-} \
  >"$out/baselines.log" 2>&1
tail -n 30 "$out/baselines.log"
step "grid"
timeout "${GRID_S:-330}" python3 "$here/train.py" -m experiment=vqa_rad_study "${study[@]}" \
  "hydra.launcher.slots=${SLOTS:-[0,0,0,0,0,0]}" ${EXTRA:-} ${GRID:-} >"$out/grid.log" 2>&1
echo "grid rc=$?"
tail -n 8 "$out/grid.log" | cut -c1-160
step "record"
(cd "$here" && python3 benchmarks/study.py record "$work/multirun" --out "$out/vqa_rad.json"
  python3 benchmarks/study.py record "$work/outputs" --out "$out/vqa_rad_baselines.json")
cp "$work"/multirun/*/summary.csv "$out/" 2>/dev/null
step "engines"
(cd "$here" && timeout "${ENGINE_S:-200}" python3 -m benchmarks.engine "${ENGINE:-qwen3_vl_8b}" \
  --vqa-rad "$carried/vqa_rad" --tokenizer "$carried/qwen.tiktoken" --out "$out/engine.json" \
  ${ENGINE_OPTIONS:-} >"$out/engine.log" 2>&1; tail -n 12 "$out/engine.log")
step "end"
