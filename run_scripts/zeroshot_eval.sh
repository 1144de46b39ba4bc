#!/usr/bin/env bash
# Zero-shot classification of one data set; predictions go to DATAPATH/save_predictions.
# usage: bash run_scripts/zeroshot_eval.sh GPU DATAPATH DATASET VISION_MODEL TEXT_MODEL CHECKPOINT [INDEX] [flags]
#   GPU is a number, or `cpu`; flags are those of cn_clip/eval/zeroshot_evaluation.py
set -euo pipefail

# shellcheck source=run_scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

[[ $# -ge 6 ]] || fail "usage: bash $0 GPU DATAPATH DATASET VISION_MODEL TEXT_MODEL CHECKPOINT [INDEX] [flags]"
gpu=$1 datapath=$2 dataset=$3 vision_model=$4 text_model=$5 checkpoint=$6
shift 6
index=()
if [[ $# -gt 0 && $1 != --* ]]; then
    [[ -z $1 ]] || index=(--index="$1")
    shift
fi
folder=$datapath/datasets/$dataset
[[ -d $folder/test ]] || fail "there is no folder $folder/test: DATAPATH is $datapath, DATASET is $dataset"

[[ $gpu != cpu ]] || gpu=''
export CUDA_VISIBLE_DEVICES=$gpu
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$datapath/save_predictions"
exec "$(find_python)" -u "$ROOT/cn_clip/eval/zeroshot_evaluation.py" \
    --datapath="$folder/test" \
    --label-file="$folder/label_cn.txt" \
    --save-dir="$datapath/save_predictions" \
    --dataset="$dataset" \
    "${index[@]}" \
    --img-batch-size=64 \
    --resume="$checkpoint" \
    --vision-model="$vision_model" \
    --text-model="$text_model" \
    "$@"
