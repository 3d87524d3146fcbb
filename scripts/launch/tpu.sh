#!/bin/bash
# Trains with all machines of a Cloud TPU slice. From the folder of the project, with the name and
# the zone of the slice:
#
#     TPU_NAME=mine TPU_ZONE=us-central2-b scripts/launch/tpu.sh \
#         --config=configs/traffic.py --workdir=/mnt/disks/data/runs/traffic
#
# It copies what is committed to every machine, installs it there, and starts one process on each,
# which find each other by what the TPU tells them. The images must be on every machine; the workdir
# is that of the first one. After an interruption the same command goes on from what was saved.
set -euo pipefail

tpu=(gcloud compute tpus tpu-vm)
name=${TPU_NAME:?set it to the name of the slice}
where=(--zone="${TPU_ZONE:?set it to the zone of the slice}" --worker=all)
arguments=$(printf ' %q' "$@")

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
"${tpu[@]}" scp "$archive" "$name:tlflax.tar.gz" "${where[@]}"

# uv brings a Python that is new enough: that of the machine may not be.
"${tpu[@]}" ssh "$name" "${where[@]}" --command="
    mkdir -p tlflax && tar -xzf tlflax.tar.gz -C tlflax && cd tlflax &&
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python=3.12 .venv &&
    python3 -m uv pip install --quiet --python=.venv --editable='.[tpu]'"

"${tpu[@]}" ssh "$name" "${where[@]}" --command="
    cd tlflax && exec .venv/bin/python -m tlflax.train$arguments"
