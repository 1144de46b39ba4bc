#!/usr/bin/env bash
# Fine-tune on Flickr30k-CN with half of the image patches left out (FLIP).
# usage: bash run_scripts/flickr30k_finetune_vit-b-16_rbt-base_flip.sh DATAPATH [flags of cn_clip/training/main.py]
set -euo pipefail

# Machines, processes on each, and where they meet (see _launch.sh); the environment wins over these.
: "${WORKER_CNT:=1}" "${GPUS_PER_NODE:=auto}" "${MASTER_ADDR:=localhost}" "${MASTER_PORT:=auto}" "${RANK:=0}"

# shellcheck source=run_scripts/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
finetune flickr30k_finetune_vit-b-16_rbt-base_flip.yaml "$@"
