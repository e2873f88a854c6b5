#!/usr/bin/env bash
# What still has to be measured, in one command of ten minutes on a bare host of two GPUs:
#   WHEELS=DIR COMMIT=HASH whole_visit.sh RESULTS CARRIED        CARRIED is made by carry.sh
# WHEELS hold what is missing there; without it all is installed.
# One GPU takes the engines and the grid, the other the study on real pictures. What is dearest to
# miss comes first in both lanes; each part is bounded and packed into RESULTS when it ends.
# On one GPU: LANES="study" and LANES="engines" in calls of their own, FIRST=0 SECOND=0.
set -uo pipefail
mkdir -p "$1"
out=$(realpath "$1") carried=$(realpath "$2")
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled
export UNSLOTH_DISABLE_STATISTICS=1
# As on a machine of one's own: where Python keeps nothing compiled, every start compiles nearly two
# thousand modules.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=/tmp/compiled
if [ -n "${WHEELS:-}" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site \
    "$WHEELS"/*.whl
  export PYTHONPATH=/tmp/site:$PWD
fi
first=${FIRST-0} second=${SECOND-1} total=${WHOLE_S:-570}
lanes=${LANES:-study engines}
saved=${SAVED:-/tmp/engine_visit/qwen3_vl_8b}
visit="bash benchmarks/engine_visit.sh"
pack() { tar czf "$out/$1.tgz" -C "$2" .; }
left() { echo $((total - SECONDS)); }

study() {
  local results=/tmp/study_results
  mkdir -p "$results" "$saved" /tmp/second /tmp/probe /tmp/probe_work /tmp/second_work
  ln -sfn "$saved" /tmp/probe_work/qwen3_vl_8b
  ln -sfn "$saved" /tmp/second_work/qwen3_vl_8b
  export CUDA_VISIBLE_DEVICES=$second
  # Losses only, so it may run beside the grid; the base's building is bounded in time.
  (until grep -qE "^== (grid|end)" "$results/lane.log"; do sleep 1; done 2>/dev/null
   WORK=/tmp/probe_work TOTAL_S=260 $visit /tmp/probe "$carried" backends >/tmp/probe/lane.log 2>&1) &
  BASE_S=${BASE_S:-140} GRID_S=${GRID_S:-200} ENGINE_S=1 \
    SLOTS=${SLOTS:-[$second,$second,$second,$second,$second,$second]} \
    bash benchmarks/study_gpu.sh "$results" "$carried" >"$results/lane.log" 2>&1
  pack study "$results"
  wait
  pack probe /tmp/probe
  for step in unsloth four_bit_lean others; do
    OTHERS=${OTHERS:-qwen2_vl_2b_4bit} STEPS=5 WORK=/tmp/second_work TOTAL_S=$(left) \
      $visit /tmp/second "$carried" "$step" >>/tmp/second/lane.log 2>&1
    pack second /tmp/second
  done
}
grid() { # at most so many seconds, part
  local limit=$(($1 < $(left) ? $1 : $(left)))
  [ "$limit" -lt 30 ] && return
  timeout "$limit" python3 benchmarks/grid.py /tmp/first/grid.json --gpu --parts "$2" \
    --model-path "$saved" --data-path "$carried/vqa_rad" --cells warm=3 isolated=1 \
    --published-questions 8 --published-steps 10 --timeout $((limit - 10)) ${GRID_OPTIONS:-} 2>&1 |
    tail -n 40 | tee -a /tmp/first/grid.log
  pack first /tmp/first
}
engines() {
  export CUDA_VISIBLE_DEVICES=$first
  mkdir -p /tmp/first
  TOTAL_S=90 $visit /tmp/first "$carried" save
  grid 320 published
  grid 110 warm
  grid 80 isolated
  TOTAL_S=$(left) $visit /tmp/first "$carried" startup disk metrics
  pack first /tmp/first
}
# Each lane on cores of its own, so that one's preparing does not slow the other's steps.
cores=$(nproc --all)
half() { [ "$1" = engines ] && echo "0-$((cores / 2 - 1))" || echo "$((cores / 2))-$((cores - 1))"; }
for lane in $lanes; do
  { [ "$lanes" = "$lane" ] || taskset -cp "$(half "$lane")" "$BASHPID" >/dev/null
    "$lane"; } >"/tmp/$lane.out" 2>&1 &
done
wait
for lane in $lanes; do echo "== $lane"; cut -c1-400 "/tmp/$lane.out"; done
echo "== end at $SECONDS s"
