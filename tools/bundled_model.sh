#!/usr/bin/env bash
# The chain that makes the bundled model, from pictures to the file. Every step goes on where it was cut off, so this is
# also what restarts it.
#
#   tools/bundled_model.sh RUNS DATA WEIGHTS        RUNS: a folder beside the checkout; DATA, WEIGHTS: shared/data, shared/weights
#
# One core: OMP_NUM_THREADS=1. Disk: 16 GB a view, 10 GB of mosaics, 0.1 GB of objects, 0.15 MB a clip of tokens.
# Memory: 5 GB at most.
set -euo pipefail
runs=$1 data=$2 weights=$3 here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH="$here/../src:$here"
parts=(--data "objects=$runs/objects" --data "pictures=$data" --data "weights=$weights")

stage() {  # stage FOLDER RECIPE START VIEWS SETTING...: one recipe, once
    local name=$1 recipe=$2 start=$3 views=$4
    shift 4
    [ -e "$runs/$name/model.safetensors" ] && return
    "$python" -m deixis.cli train "light_$recipe" -o "$runs/$name" --resume "${parts[@]}" --data "features=$runs/$views" \
        ${start:+--data "start=$start"} --data "tokens=$runs/tokens" "$@"
}

"$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/views" --view 0
"$python" "$here/data_engine.py" --data "$data" --weights "$weights" -o "$runs/objects"
"$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/mosaics" --mosaics 3000
for view in 1 2 3 4 5 6 7 8; do  # crops of the crowded pictures: most of what people name is there
    "$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/views" --view $view --only coco_small
done
mkdir -p "$runs/both"
for view in 0 1 2 3 4 5 6 7 8; do ln -sfn "$runs/views/v$view" "$runs/both/v$view"; done
ln -sfn "$runs/mosaics/mosaics" "$runs/both/mosaics"
stage namer namer "" views
for fold in 0 1; do stage namer$fold namer "" views --set data.fold=$fold; done
stage large proposals "$runs/namer/model.safetensors" views --set train.steps=3000
stage proposals proposals "$runs/large/model.safetensors" both --set train.steps=7000
"$python" "$here/remember_views.py" --data "$data" --weights "$weights" -o "$runs/views" --view 1 --written
model=$runs/proposals/model.safetensors
for kind in pictures davis stills pasted typed films; do
    "$python" "$here/make_tokens.py" $kind --model "$model" --features "$runs/views" --objects "$runs/objects" \
        --data "$data" -o "$runs/tokens" --films "${FILMS:-10000}"
done
stage scorer scorer "$model" views --data "namer0=$runs/namer0/model.safetensors" \
    --data "namer1=$runs/namer1/model.safetensors"
echo "done: $runs/scorer/model.safetensors"
