#!/usr/bin/env bash
# The whole way through on real pictures: install, draw, prepare, train the AR generator and the DiT, look.
#   bash launch/quickstart.sh [OUTPUT]       default OUTPUT: output/quickstart of this repository
# Ends with OUTPUT/index.html. A step that is done is skipped; after Ctrl-C or a fault, calling it again goes on.
# MINDGLM_QUICKSTART_SMALL=1 runs the same steps on a handful of pictures, to see that they run.
set -euo pipefail
OUTPUT="${1:-output/quickstart}"
if [ $# -gt 0 ] && [ "${OUTPUT#/}" = "$OUTPUT" ]; then OUTPUT="$PWD/$OUTPUT"; fi
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
source "$ROOT/launch/supervise.sh"

export GLOG_v="${GLOG_v:-3}" # MindSpore's own warnings would bury the progress
NANO=mindglm/assets/nano
CURRENT="" # the running step
CHAIN=""   # hash of the commands and inputs so far: a step is done when it was done under this very hash
mkdir -p "$OUTPUT/steps"
exec 9> "$OUTPUT/steps/lock"
if ! flock -n 9; then
    echo "mindglm: another quickstart is at work in $OUTPUT. Wait for it, stop it, or give another folder." >&2
    exit 2
fi

# ---- steps that know when they are done ----

add_seconds() {
    [ -n "$CURRENT" ] || return 0
    local file="$OUTPUT/steps/$CURRENT.seconds"
    echo $(($(cat "$file" 2>/dev/null || echo 0) + SECONDS - BEGUN)) > "$file"
    CURRENT=""
}

interrupted() {
    trap '' INT TERM
    echo
    echo "== stopping${CURRENT:+ in the step '$CURRENT'}; the same command goes on from here"
    stop_child
    add_seconds
    exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'stop_child; add_seconds' EXIT

# step NAME TITLE PRODUCT INPUTS COMMAND...   PRODUCT: a file that is there when the step is done.
step() {
    local name="$1" title="$2" product="$3" inputs="$4" stamp="$OUTPUT/steps/$1"
    shift 4
    CHAIN="$(printf '%s\n' "$CHAIN" "$inputs" "$*" | sha256sum | cut -c 1-32)"
    if [ "$(cat "$stamp.done" 2>/dev/null)" = "$CHAIN" ] && [ -e "$product" ]; then
        echo "== $title: done before ($(cat "$stamp.seconds") s), skipped"
    else
        echo "== $title"
        if [ "$(cat "$stamp.begun" 2>/dev/null)" != "$CHAIN" ]; then
            if [ "$1" = train ] && [ -e "$OUTPUT/$name" ]; then # a run cannot go on under another recipe or data
                echo "   begun before with other inputs: $OUTPUT/$name is made anew"
                rm -rf "${OUTPUT:?}/$name"
            fi
            rm -f "$stamp.seconds" "$stamp.done"
            echo "$CHAIN" > "$stamp.begun"
        fi
        echo "   $(shown "$@")"
        BEGUN=$SECONDS
        CURRENT="$name"
        "$@" || failed "$name" $?
        add_seconds
        echo "$CHAIN" > "$stamp.done"
        echo "   done in $(cat "$stamp.seconds") s"
    fi
    printf '%s\t%s\t%s\n' "$name" "$(cat "$stamp.seconds")" "$(shown "$@")" >> "$OUTPUT/steps.tsv.new"
}

shown() { # the command as a person would type it
    if [ "$1" = train ]; then
        echo "bash launch/train_node.sh ${*:3} parallel_config.data_parallel=2"
    else
        echo "${*:2}"
    fi
}

failed() {
    echo "mindglm: the step '$1' failed (exit code $2). Mend what is said above and call the same command again." >&2
    exit "$2"
}

# train NAME RECIPE key=value...: two workers, their gradients averaged by MindSpore's collectives.
train() {
    local status=0
    run_workers 2 "$OUTPUT/msrun_log/$1" python -m mindglm train "${@:2}" parallel_config.data_parallel=2 || status=$?
    if [ $status -ne 0 ] && [ -e "$OUTPUT/$1/model/model_index.json" ]; then
        echo "   the model is complete, though a process failed after it was written: going on"
        status=0
    fi
    return $status
}

# ---- the steps ----

SMALL_IMAGES=() SMALL_AR=() SMALL_DIT=() SMALL_PAGE=()
if [ -n "${MINDGLM_QUICKSTART_SMALL:-}" ]; then
    SMALL_IMAGES=(--limit 160 --signs 160)
    SMALL_AR=(runner_config.stop_step=6 validation.eval_step_interval=3 lr_schedule.warmup_steps=2)
    SMALL_DIT=("${SMALL_AR[@]}" monitor_config.sample_step_interval=0)
    SMALL_PAGE=(--limit 8 --steps 4)
fi
rm -f "$OUTPUT/steps.tsv.new"

step images "pictures: OpenMoji drawings and signs" "$OUTPUT/images/captions.jsonl" "" \
    run python -m mindglm.data.openmoji --output "$OUTPUT/images" ${SMALL_IMAGES[@]+"${SMALL_IMAGES[@]}"}
step prepare "dataset: codes, latents, glyph features" "$OUTPUT/dataset/index.json" \
    "$(cat "$NANO"/*/*.safetensors | sha256sum)" \
    run mindglm prepare --images "$OUTPUT/images" --model "$NANO" --output "$OUTPUT/dataset" --height 128 --width 128
step ar "AR generator: training on 2 workers" "$OUTPUT/ar/model/model_index.json" "$(cat recipes/nano/ar.yaml)" \
    train ar recipes/nano/ar.yaml output_dir="$OUTPUT/ar" train_dataset.dataset_dir="$OUTPUT/dataset" \
    pretrained_model_dir="$NANO" ${SMALL_AR[@]+"${SMALL_AR[@]}"}
step dit "DiT decoder: training on 2 workers" "$OUTPUT/dit/model/model_index.json" "$(cat recipes/nano/dit.yaml)" \
    train dit recipes/nano/dit.yaml output_dir="$OUTPUT/dit" train_dataset.dataset_dir="$OUTPUT/dataset" \
    pretrained_model_dir="$OUTPUT/ar/model" ${SMALL_DIT[@]+"${SMALL_DIT[@]}"}
mv "$OUTPUT/steps.tsv.new" "$OUTPUT/steps.tsv" # before the page, which prints it
step page "page: held-out figures and pictures" "$OUTPUT/index.html" "" \
    run python -m mindglm.evaluate.quickstart_page --model "$OUTPUT/dit/model" --dataset "$OUTPUT/dataset" \
    --images "$OUTPUT/images" --runs "$OUTPUT/ar" "$OUTPUT/dit" --output "$OUTPUT" ${SMALL_PAGE[@]+"${SMALL_PAGE[@]}"}
rm -f "$OUTPUT/steps.tsv.new"
echo "== open $OUTPUT/index.html ($((SECONDS / 60)) min $((SECONDS % 60)) s this time)"
