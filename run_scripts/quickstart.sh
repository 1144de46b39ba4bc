#!/usr/bin/env bash
# From raw pictures and captions to recall, on a plain machine: data, LMDB, training, features, search, recall both
# ways, zero-shot classification, and a report.
# usage: bash run_scripts/quickstart.sh [FOLDER] [flags of cn_clip/training/main.py]
#   FOLDER (./quickstart) gets everything. Run again, it reuses what is there; killed half-way, it continues.
set -euo pipefail

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

folder=quickstart
if [[ $# -gt 0 && $1 != -* ]]; then
    folder=$1
    shift
fi
train_flags=("$@")
if [[ -d $folder && ! -d $folder/stages && -n $(ls -A "$folder") ]]; then
    fail "$folder holds other files, which this would mix with its own: give a new folder"
fi
mkdir -p "$folder/stages" || fail "cannot make the folder $folder: give one that can be written"
QUICKSTART=$(cd "$folder" && pwd)
export QUICKSTART  # named in configs/quickstart.yaml

set_up_environment quickstart
cd "$QUICKSTART"  # file names below are short, and the same wherever the folder lies

door() {
    "$PYTHON" -u "$ROOT/$1" "${@:2}"
}

# stage NAME OUTPUT FUNCTION [FILE…]: runs FUNCTION unless it was done already with the same inputs: its own text, the
# FILEs, and all stages before it. OUTPUT of other inputs is removed first; of the same inputs it is continued.
previous=''
stage() {
    local name=$1 output=$2 run=$3 start=$SECONDS key state
    key=$( (echo "$previous"; declare -f "$run"; cat -- "${@:4}") | cksum)
    previous=$key
    state=$(cat "stages/$name" 2>/dev/null || true)
    if [[ -e $output && $state == "$key done "* ]]; then
        echo "== $name: done before, in ${state##* } s"
        return
    fi
    if [[ $state != "$key started" ]]; then
        [[ ! -e $output ]] || echo "== $name: its inputs changed, so $output is made anew"
        rm -rf -- "$output"
        echo "$key started" >"stages/$name"
    fi
    echo "== $name"
    "$run" || {
        local code=$?
        echo "== $name: failed; mend what it says above and run the same command again, finished stages are kept" >&2
        exit "$code"
    }
    echo "$key done $((SECONDS - start))" >"stages/$name"
    echo "== $name: $((SECONDS - start)) s"
}

make_data() {
    door data_tools/emoji_pairs.py --output-dir data
}

build_lmdb() {
    door cn_clip/preprocess/build_lmdb_dataset.py --data_dir data --splits train,valid,test --lmdb_dir lmdb
}

train() {
    door cn_clip/training/main.py --config "$ROOT/configs/quickstart.yaml" "${train_flags[@]}"
}

extract() {
    mkdir -p results
    door cn_clip/eval/extract_features.py --extract-image-feats --extract-text-feats \
        --image-data lmdb/test/imgs --text-data data/test_texts.jsonl \
        --image-feat-output-path results/images.jsonl --text-feat-output-path results/texts.jsonl \
        --resume run/checkpoints/epoch_latest.pt --vision-model quickstart-resnet --text-model quickstart-bert \
        --context-length 32 --precision fp32
}

search() {
    door cn_clip/eval/make_topk_predictions.py --image-feats results/images.jsonl --text-feats results/texts.jsonl \
        --top-k 10 --output results/found_images.jsonl &&
        door cn_clip/eval/make_topk_predictions_tr.py --image-feats results/images.jsonl \
            --text-feats results/texts.jsonl --top-k 10 --output results/found_texts.jsonl
}

evaluate() {
    door cn_clip/eval/evaluation.py data/test_texts.jsonl results/found_images.jsonl results/recall_images.json &&
        door cn_clip/eval/transform_ir_annotation_to_tr.py --input data/test_texts.jsonl &&
        door cn_clip/eval/evaluation_tr.py data/test_texts.tr.jsonl results/found_texts.jsonl results/recall_texts.json
}

zeroshot() {
    mkdir -p results/zeroshot
    door cn_clip/eval/zeroshot_evaluation.py --datapath data/zeroshot/test --label-file data/zeroshot/label_cn.txt \
        --dataset emoji --save-dir results/zeroshot --resume run/checkpoints/epoch_latest.pt \
        --vision-model quickstart-resnet --text-model quickstart-bert --context-length 32 --precision fp32 \
        --template-file data/zeroshot/templates.json --num-workers 0 | tee results/zeroshot.txt
}

report() {
    door cn_clip/eval/write_report.py --text-feats results/texts.jsonl --image-feats results/images.jsonl \
        --texts data/test_texts.jsonl --images lmdb/test --train-log run \
        --recall-images results/recall_images.json --recall-texts results/recall_texts.json \
        --zeroshot results/zeroshot.txt --stages stages --output report.html \
        --credit "Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0)"
}

stage data data make_data "$ROOT"/data_tools/emoji_pairs.py "$ROOT"/data_tools/emoji_quickstart/*.py
stage lmdb lmdb build_lmdb
stage train run train "$ROOT"/configs/quickstart.yaml "$ROOT"/cn_clip/clip/model_configs/quickstart-*.json \
    <(declare -p train_flags)
stage extract results/texts.jsonl extract
stage search results/found_texts.jsonl search
stage evaluate results/recall_texts.json evaluate
stage zeroshot results/zeroshot zeroshot
report  # each time: seconds, and its table is what a second run is asked for
