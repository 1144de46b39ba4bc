#!/usr/bin/env bash
# Fine-tune ViT-B-16 + RoBERTa-base on COCO-CN.
# usage: bash run_scripts/coco-cn_finetune_vit-b-16_rbt-base.sh DATAPATH [flags of cn_clip/training/main.py]
set -euo pipefail

# Machines, processes on each, and where they meet (see _launch.sh); the environment wins over these.
: "${WORKER_CNT:=1}" "${GPUS_PER_NODE:=auto}" "${MASTER_ADDR:=localhost}" "${MASTER_PORT:=auto}" "${RANK:=0}"

# shellcheck source=run_scripts/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
finetune coco-cn_finetune_vit-b-16_rbt-base.yaml "$@"
