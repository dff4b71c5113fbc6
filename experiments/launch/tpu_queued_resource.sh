#!/usr/bin/env bash
# Asks for a Cloud TPU slice, waits for it, and starts the run on every host.
#
#   PROJECT=my-project ZONE=us-west4-b WORKDIR=/mnt/shared/run \
#       bash experiments/launch/tpu_queued_resource.sh
#
# NAME, ACCELERATOR, RUNTIME, REPOSITORY, CONFIG, MESH and PROMPTS have defaults below. The workdir must be on a
# file system mounted on every host. Delete the slice afterwards:
#   gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --project="$PROJECT" --force
set -euo pipefail

: "${PROJECT:?the cloud project}"
: "${ZONE:?such as us-west4-b}"
: "${WORKDIR:?a folder that all hosts see}"
NAME=${NAME:-jaxreward}
ACCELERATOR=${ACCELERATOR:-v5litepod-256} # v5p-128 is a v5p:4x4x4
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # v2-alpha-tpuv5 for v5p
REPOSITORY=${REPOSITORY:-$(git remote get-url origin)}
CONFIG=${CONFIG:-configs/noise_corrected_grpo.py}
MESH=${MESH:-1,-1,1}
PROMPTS=${PROMPTS:-256} # per step, a multiple of data * fsdp: here of 256 chips

gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --project="$PROJECT" \
  --zone="$ZONE" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"

until [ "$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" \
  --zone="$ZONE" --format='value(state.state)')" = ACTIVE ]; do
  sleep 30
done

# The same command on every host; it may be given again after an interruption.
gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="
  set -e
  test -d jaxreward || git clone '$REPOSITORY' jaxreward
  cd jaxreward
  python3 -m venv .venv
  .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'
  .venv/bin/python -m experiments.rlvr_mesh --distributed --config='$CONFIG' --workdir='$WORKDIR' --mesh='$MESH' --config.prompts_per_step='$PROMPTS'
"
