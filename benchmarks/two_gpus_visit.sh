#!/usr/bin/env bash
# One visit to a machine with two GPUs for benchmarks/two_gpus.py, in calls that fit a time limit:
#   two_gpus_visit.sh RESULTS CARRIED steps evaluation     then, on the same warm machine, ... grid
# CARRIED holds vqa_rad/ and qwen.tiktoken, as for gpu_visit.sh.
set -euo pipefail
out=$(realpath "$1") carried=$(realpath "$2") work=/tmp/visit
shift 2
mkdir -p "$work" "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:${PYTHONPATH:-}" TOKENIZERS_PARALLELISM=false
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}   # NVLink multicast stays off on lent machines
if [ ! -f "$work/qwen3_vl_8b/config.json" ]; then
  python3 benchmarks/random_models.py qwen3_vl_8b "$work/qwen3_vl_8b" \
    --tokenizer "$carried/qwen.tiktoken" 2>&1 | tail -n 3
fi
status=0
python3 benchmarks/two_gpus.py "$work/two_gpus" --model "$work/qwen3_vl_8b" \
  --data "$carried/vqa_rad" --parts "$@" || status=$?
cp "$work/two_gpus"/*.json "$work/two_gpus"/*.log "$out" 2>/dev/null || true
exit "$status"
