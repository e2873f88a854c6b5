#!/usr/bin/env bash
# Everything that docs/engine.md's tables need, on one bare GPU machine without a network:
#   engine_visit.sh RESULTS CARRIED [STEP...]    CARRIED holds vqa_rad/ and qwen.tiktoken
# A step is a function below; without names all run, the dearest last. RESULTS/engine.json is
# written after each row, and later calls on the same warm machine add to it. A step is bounded by
# NAME_S and all of them by TOTAL_S seconds; COMMIT names the tree where its history is not there.
# A rehearsal on a CPU, as small as OPTIONS say:
#   MODEL=tiny SMALL=tiny OPTIONS="--steps 1 --warm-up 1 --curve-steps 2 ..." engine_visit.sh ...
set -uo pipefail
out=$(realpath "$1") carried=$(realpath "$2") work=${WORK:-/tmp/engine_visit}
shift 2
mkdir -p "$work" "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:${PYTHONPATH:-}" TOKENIZERS_PARALLELISM=false
model=${MODEL:-qwen3_vl_8b} small=${SMALL:-qwen3_vl_2b} options=(${OPTIONS:-})
answering=${ANSWERING:-plain:plain:1:8,fused:shared_prefix:128,fused:shared_prefix:1:32,fused:plain:128:256}
[ -f "$work/engine.json" ] && cp "$work/engine.json" "$out/engine.json"

bounded() { # seconds command...
  local left=$((${TOTAL_S:-570} - SECONDS)) limit=$1
  shift
  [ "$left" -lt 20 ] && { echo "no time left"; return 124; }
  timeout $((limit < left ? limit : left)) "$@"
}
measure() { # seconds model parts options...
  local limit=$1 name=$2 parts=$3
  shift 3
  bounded "$limit" python3 -m benchmarks.engine "$name" --vqa-rad "$carried/vqa_rad" \
    --tokenizer "$carried/qwen.tiktoken" --out "$out/engine.json" --parts "$parts" \
    --steps "${STEPS:-6}" "$@" "${options[@]}"
}
saved() { [ "$model" = tiny ] || echo --model-path "$work/$model"; }

speed() { # one model in one process: rates, gradients, answers
  measure "${SPEED_S:-280}" "$model" training,gradients,answering,profile --answering "$answering"
}
optimizer() { measure "${OPTIMIZER_S:-60}" "$model" optimizer; }
answering() { measure "${ANSWERING_S:-120}" "$model" answering,profile --answering "$answering"; }
curve() { measure "${CURVE_S:-150}" "$model" curve --curves "${CURVES:-plain:8,fused:8}"; }
curves_small() { # every micro-batch, where a step is cheap
  measure "${CURVES_SMALL_S:-150}" "$small" curve,gradients
}
four_bit() {
  measure "${FOUR_BIT_S:-150}" "$model" training,gradients --four-bit \
    --curves "${FOUR_BIT_CURVES:-plain:8,fused:8}"
}
four_bit_lean() { # the layers' insides computed again: less memory, more products
  measure "${FOUR_BIT_S:-150}" "$model" training --four-bit --checkpointing --training fused:8 \
    --pictures square
}
others() { # the other models' rates, on VQA-RAD's pictures
  local name
  for name in ${OTHERS:-qwen3_vl_2b qwen2_vl_7b qwen2_vl_2b_4bit}; do
    measure "${OTHERS_S:-70}" "$name" training --pictures real --training plain:2,fused:8 \
      $([[ $name == *_4bit ]] && echo --four-bit)
  done
}
save() { # for what follows; the tokenizer is written last
  [ "$model" = tiny ] || [ -f "$work/$model/tokenizer_config.json" ] || bounded "${SAVE_S:-90}" \
    python3 benchmarks/random_models.py "$model" "$work/$model" \
    --tokenizer "$carried/qwen.tiktoken"
}
startup() {
  save && measure "${STARTUP_S:-120}" "$model" startup --backends transformers $(saved)
}
disk() { save && measure 60 "$model" disk $(saved); }
metrics() { # with random weights where only the encoder's shape was carried
  bounded 90 python3 -m benchmarks.metrics --vqa-rad "$carried/vqa_rad" --out "$out/metrics.json" \
    $([ -d "$carried/minilm" ] && echo --random-encoder "$carried/minilm")
}
unsloth() { # the published way: its checkpointing, 2 x 4, one question at a time
  save && measure "${UNSLOTH_S:-240}" "$model" "${UNSLOTH:-training,answering}" --backend unsloth \
    --checkpointing --training plain:2 --answering plain:plain:1:8 $(saved)
}
startup_unsloth() { # one record for both backends: it replaces that of `startup`
  save && measure "${STARTUP_UNSLOTH_S:-300}" "$model" startup --attempts 1 $(saved)
}
backends() { save && measure "${BACKENDS_S:-240}" "$model" backends $(saved); }
growth() { measure "${GROWTH_S:-120}" "$model" growth --warm-up 2 --steps 4; }
growth_small() { measure "${GROWTH_SMALL_S:-60}" "$small" growth --warm-up 2 --steps 4 --axes model; }
ranks() {
  for rank in 8 64; do
    measure "${RANKS_S:-60}" "$model" growth --rank "$rank" --axes model --warm-up 2 --steps 4 ||
      return
  done
}

if [ $# = 0 ]; then
  set -- speed optimizer four_bit four_bit_lean others curve growth growth_small ranks startup backends unsloth curves_small
fi
for name in "$@"; do
  started=$SECONDS
  "$name" >"$work/$name.log" 2>&1
  echo "== $name rc=$? $((SECONDS - started)) s, $SECONDS s in all"
  [ -f "$out/engine.json" ] && cp "$out/engine.json" "$work/engine.json"
  cat "$work/$name.log" >>"$out/engine.log"
  grep -E "^(training|curve|gradients|answering|growth|startup|backends) \{|Error|no time" \
    "$work/$name.log" | cut -c1-300
done
