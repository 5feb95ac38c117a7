#!/usr/bin/env bash
# Makes mindglm/assets/nano anew: trains the nano VAE, the image tokenizer and the glyph encoder by their recipes
# (about half an hour on 2 cores), and puts them together with a text tokenizer in the released layout.
#   bash launch/make_nano_assets.sh [OUTPUT] [FOLDER]
# OUTPUT: where pictures, runs and logs go, default output/nano.  FOLDER: default mindglm/assets/nano.
# Each run goes on where it was stopped.
set -euo pipefail
OUTPUT="${1:-output/nano}"
FOLDER="${2:-mindglm/assets/nano}"
for name in OUTPUT FOLDER; do # what the caller typed is relative to where the caller stands
    if [ $# -gt 0 ] && [ "${!name#/}" = "${!name}" ]; then printf -v "$name" '%s' "$PWD/${!name}"; fi
    shift || true
done
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

source launch/supervise.sh
trap 'stop_child; exit 130' INT
trap 'stop_child; exit 143' TERM

train() { # NAME key=value...: two workers
    run_workers 2 "$OUTPUT/msrun_log/$1" python -m mindglm train "recipes/nano/$1.yaml" output_dir="$OUTPUT/$1" \
        parallel_config.data_parallel=2 "${@:2}"
}

IMAGES="$OUTPUT/images"
run python -m mindglm.data.openmoji --output "$IMAGES"
run python -m mindglm prepare --images "$IMAGES" --pixels-only --output "$OUTPUT/pixels" --height 128 --width 128
train vae train_dataset.dataset_dir="$OUTPUT/pixels"
train tokenizer train_dataset.dataset_dir="$OUTPUT/pixels" pretrained_model_dir="$OUTPUT/vae/model"
train glyph pretrained_model_dir="$OUTPUT/tokenizer/model"
run python -m mindglm.data.nano_assets --trained "$OUTPUT/glyph/model" --captions "$IMAGES/captions.jsonl" \
    --output "$FOLDER"
