#!/usr/bin/env bash
# One visit to a bare GPU machine: ten steps of an 8B and a 4-bit 2B model with random weights on
# both backends, on VQA-RAD's images, with all records. Usage: gpu_visit.sh RESULTS CARRIED
set -uo pipefail
out=$(realpath "$1") carried=$(realpath "$2") work=/tmp/visit
mkdir -p "$work" "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:${PYTHONPATH:-}" TOKENIZERS_PARALLELISM=false

run() { # model backend
  local name=$1-$2 started=$SECONDS
  timeout 200 python3 train.py "model=$1" "model.backend=$2" "model.path=$work/$1" data=vqa_rad \
    "data.path=$carried/vqa_rad" data.evaluation.test.limit=64 training.max_steps=10 \
    training.warmup_steps=2 evaluation.bertscore.enabled=false evaluation.zero_shot=false \
    evaluation.after_each_stage=false evaluation.max_new_tokens=8 "tracking=${TRACKING:-default}" \
    "hydra.run.dir=$work/runs/$name" >"$work/$name.log" 2>&1
  echo "$name rc=$? wall=$((SECONDS - started)) s"
  tail -n 25 "$work/$name.log"
}

for model in ${MODELS:-qwen3_vl_8b qwen2_vl_2b_4bit}; do
  started=$SECONDS
  python3 benchmarks/random_models.py "$model" "$work/$model" \
    --tokenizer "$carried/qwen.tiktoken" 2>&1 | tail -n 3
  echo "$model written in $((SECONDS - started)) s"
  for backend in ${BACKENDS:-transformers unsloth}; do run "$model" "$backend"; done
done
cp "$work"/*.log "$out" 2>/dev/null
(cd "$work/runs" && tar czf "$out/records.tgz" --exclude='*.safetensors' --exclude='*.pt' \
  --exclude='wandb-data' .)
