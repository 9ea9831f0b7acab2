#!/usr/bin/env bash
# What tmux starts on the pod: sets the switches that the field expects, finds a Python, becomes the runner.
# usage: run.sh RUN_DIR, with PODCTL_VOLUME (the volume's root) and PODCTL_DISK (a folder on the local disk) set.
set -eu

run=${1:-}
case $run in
  "") echo "usage: run.sh RUN_DIR" >&2; exit 2 ;;
  /*) ;;
  *) run=$PWD/$run ;;  # not by $(cd && pwd): that would lose a newline at the end of a name
esac
case ${BASH_SOURCE[0]} in
  /*) here=${BASH_SOURCE[0]%/*} ;;
  */*) here=$PWD/${BASH_SOURCE[0]%/*} ;;
  *) here=$PWD ;;
esac

json() { # a text as a JSON string
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}; s=${s//$'\n'/\\n}; s=${s//$'\t'/\\t}; s=${s//$'\r'/\\r}
  printf '"%s"' "$s"
}

fail() { # there is no runner to say it, so the shell writes the last word: log, then status.json
  echo "$1" >&2
  local n=1 now boot
  mkdir -p "$run/writer"
  until mkdir "$run/writer/$n" 2>/dev/null; do # the runner's fencing epoch, taken the same way
    [ -d "$run/writer/$n" ] || exit 1
    n=$((n + 1))
  done
  now=$(date +%s)
  boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || true)
  printf '%s\n' "$1" >>"$run/log" || true
  printf '{"schema": 1, "run_id": %s, "attempt": %s, "boot_id": "%s", "state": "failed", "phase": "environment", "pid": %s, "started_at": %s, "heartbeat_at": %s, "ended_at": %s, "exit_code": 1, "signal": null, "reason": %s, "limit": "", "log_bytes": %s}\n' \
    "$(json "${run##*/}")" "$n" "$boot" "$$" "$now" "$now" "$now" "$(json "$1")" "$(($(wc -c <"$run/log")))" >"$run/.status.json.$$.tmp"
  mv -f "$run/.status.json.$$.tmp" "$run/status.json"
  exit 1
}

[ -d "$run" ] || { echo "there is no run directory $run" >&2; exit 2; }
[ -n "${PODCTL_VOLUME:-}" ] || fail "PODCTL_VOLUME is not set: set it to the volume's root, and start the run again"
[ -n "${PODCTL_DISK:-}" ] || fail "PODCTL_DISK is not set: set it to a folder on this machine's own disk, and start the run again"
mkdir -p "$PODCTL_DISK" || fail "PODCTL_DISK is $PODCTL_DISK, which cannot be made: set it to a folder on this machine's own disk"

# each only where the caller has not chosen; downloads stay off the network volume, which is slow for small files
export HF_HOME="${HF_HOME:-$PODCTL_DISK/hf}"
export HF_DATASETS_CACHE="${HF_DATASETS_CACHE:-$HF_HOME/datasets}"
# fast downloads: huggingface_hub 1 and later (hf-xet). Not HF_HUB_ENABLE_HF_TRANSFER: an older hub without the
# hf_transfer package then refuses to download at all
export HF_XET_HIGH_PERFORMANCE="${HF_XET_HIGH_PERFORMANCE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" # its threads and forked data workers deadlock
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}" # batches differ in length
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}" # the log is read while it is written
export PIP_DISABLE_PIP_VERSION_CHECK="${PIP_DISABLE_PIP_VERSION_CHECK:-1}"
if [ "$(uname)" = Darwin ]; then
  export PYTORCH_ENABLE_MPS_FALLBACK="${PYTORCH_ENABLE_MPS_FALLBACK:-1}" # some operators are CPU only
  # torch may take 1.7 times what the GPU can hold before it says "out of memory"; until then the whole Mac swaps.
  # At 1.0 it says so. The low mark (1.4 unless set) must not be above the high one, or torch refuses both.
  if [ -z "${PYTORCH_MPS_HIGH_WATERMARK_RATIO:-}" ]; then
    export PYTORCH_MPS_HIGH_WATERMARK_RATIO=1.0 PYTORCH_MPS_LOW_WATERMARK_RATIO="${PYTORCH_MPS_LOW_WATERMARK_RATIO:-0.8}"
  fi
fi

for python in "${PODCTL_PYTHON:-}" python3 /usr/bin/python3; do
  [ -n "$python" ] || continue
  if "$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
    exec "$python" -I -S "$here/runner.py" "$run" # -I: no PYTHONPATH, no working directory; -S: no site-packages needed
  fi
done
fail "this machine has no Python 3.8 or newer: choose an image that has one, or set PODCTL_PYTHON"
