#!/usr/bin/env bash
# Makes mindglm/assets/nano anew: trains the nano VAE, the image tokenizer and the glyph encoder by their recipes
# (about an hour on 2 cores), and puts them together with a text tokenizer in the released layout.
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

IMAGES="$OUTPUT/images"
"$PYTHON" -m mindglm.data.openmoji --output "$IMAGES"
"$PYTHON" -m mindglm prepare --images "$IMAGES" --pixels-only --output "$OUTPUT/pixels" --height 128 --width 128
"$PYTHON" -m mindglm train recipes/nano/vae.yaml output_dir="$OUTPUT/vae" train_dataset.dataset_dir="$OUTPUT/pixels"
"$PYTHON" -m mindglm train recipes/nano/tokenizer.yaml output_dir="$OUTPUT/tokenizer" \
    train_dataset.dataset_dir="$OUTPUT/pixels" pretrained_model_dir="$OUTPUT/vae/model"
"$PYTHON" -m mindglm train recipes/nano/glyph.yaml output_dir="$OUTPUT/glyph" \
    pretrained_model_dir="$OUTPUT/tokenizer/model"
"$PYTHON" -m mindglm.data.nano_assets --trained "$OUTPUT/glyph/model" --captions "$IMAGES/captions.jsonl" \
    --output "$FOLDER"
