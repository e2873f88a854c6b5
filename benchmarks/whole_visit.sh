#!/usr/bin/env bash
# What still has to be measured, in one command of ten minutes on a bare host of two GPUs:
#   whole_visit.sh RESULTS CARRIED     CARRIED holds vqa_rad/ and qwen.tiktoken; wheels are installed
# One GPU takes the engines and the grid, the other the study on real pictures. What is dearest to
# miss comes first in both lanes; each part is bounded and packed into RESULTS when it ends.
# On one GPU: LANES="study" and LANES="engines" in calls of their own, FIRST=0 SECOND=0.
set -uo pipefail
out=$1 carried=$2
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled
first=${FIRST:-0} second=${SECOND:-1} total=${WHOLE_S:-570}
lanes=${LANES:-study engines}
visit="bash benchmarks/engine_visit.sh"
pack() { tar czf "$out/$1.tgz" -C "$2" .; }
left() { echo $((total - SECONDS)); }

study() {
  local results=/tmp/study_results
  mkdir -p "$results" /tmp/second
  CUDA_VISIBLE_DEVICES=$second BASE_S=${BASE_S:-140} GRID_S=${GRID_S:-280} ENGINE_S=1 \
    SLOTS="[$second,$second,$second,$second,$second,$second]" \
    bash benchmarks/study_gpu.sh "$results" "$carried" >"$results/lane.log" 2>&1
  pack study "$results"
  CUDA_VISIBLE_DEVICES=$second WORK=/tmp/second_work TOTAL_S=$(left) \
    $visit /tmp/second "$carried" growth_small ranks curves_small >/tmp/second/lane.log 2>&1
  pack second /tmp/second
}
grid() { # part cells...
  timeout "$1" python3 benchmarks/grid.py /tmp/first/grid.json --gpu --parts "$2" \
    --model-path /tmp/engine_visit/qwen3_vl_8b --data-path "$carried/vqa_rad" \
    --cells warm=3 isolated=1 --published-questions 16 --timeout "$1" 2>&1 | tail -n 12
  pack first /tmp/first
}
engines() {
  export CUDA_VISIBLE_DEVICES=$first
  mkdir -p /tmp/first
  TOTAL_S=90 $visit /tmp/first "$carried" save
  grid 170 published
  OPTIONS="--pictures square --training fused:8,fused:4,plain:2" TOTAL_S=$(left) \
    $visit /tmp/first "$carried" four_bit
  pack first /tmp/first
  grid 130 warm
  grid 90 isolated
  TOTAL_S=$(left) $visit /tmp/first "$carried" disk startup metrics backends
  pack first /tmp/first
}
for lane in $lanes; do "$lane" >"/tmp/$lane.out" 2>&1 & done
wait
for lane in $lanes; do echo "== $lane"; cut -c1-400 "/tmp/$lane.out"; done
echo "== end at $SECONDS s"
