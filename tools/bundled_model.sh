#!/usr/bin/env bash
# The chain that makes the bundled model, from pictures to the file. Every step goes on where it was cut off, so this is
# also what restarts it.
#
#   tools/bundled_model.sh RUNS DATA WEIGHTS        RUNS: a folder beside the checkout; DATA, WEIGHTS: shared/data, shared/weights
#
# One core: OMP_NUM_THREADS=1. Disk: 16 GB a view, 0.1 GB of objects, 0.15 MB a clip of tokens. Memory: 5 GB at most.
set -euo pipefail
runs=$1 data=$2 weights=$3 here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH="$here/../src:$here"
parts=(--data "features=$runs/views" --data "objects=$runs/objects" --data "pictures=$data" --data "weights=$weights")

stage() {  # stage NAME START SET...: one recipe, once
    local name=$1 start=$2
    shift 2
    [ -e "$runs/$name/model.safetensors" ] && return
    "$python" -m deixis.cli train "light_$name" -o "$runs/$name" --resume "${parts[@]}" \
        ${start:+--data "start=$start"} --data "tokens=$runs/tokens" "$@"
}

"$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/views" --view 0
"$python" "$here/data_engine.py" --data "$data" --weights "$weights" -o "$runs/objects"
stage namer ""
stage proposals "$runs/namer/model.safetensors"
"$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/views" --view 1 --written
model=$runs/proposals/model.safetensors
for kind in pictures davis stills films; do
    "$python" "$here/make_tokens.py" $kind --model "$model" --features "$runs/views" --objects "$runs/objects" \
        --data "$data" -o "$runs/tokens" --films "${FILMS:-10000}"
done
stage scorer "$model"
echo "done: $runs/scorer/model.safetensors"
