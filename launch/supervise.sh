#!/usr/bin/env bash
# Starts a command again when it ends in failure, until it succeeds or stops making progress.
#
#   launch/supervise.sh --workdir=gs://BUCKET/radit_7b -- launch/tpu.sh resume --name=radit ...
#   launch/supervise.sh --workdir=runs/tiny -- python -m radit_jax.train --stage=all --workdir=runs/tiny
#
# Progress is whatever a run has committed in the workdir since: a stage, a shard, a checkpoint. The pause
# before a restart doubles from --wait seconds (10) up to --longest-wait (600), and is short again after
# progress; after --failures (5) failures in a row without any it gives up with the command's exit code. Exit
# code 75 is no failure: the command was stopped, or the machines that it wants are not to be had just now.
# TERM and INT go to the command, and nothing is started after them.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

workdir='' failures=5 wait=10 longest_wait=600
read_options workdir failures wait longest-wait -- "$@"
demand workdir
[ ${#train[@]} -gt 0 ] || die "expected a command behind --, got none (see --help)"

# list_files: the names of all files in the workdir. Without the cloud's own program our Python lists a bucket.
list_files() {
  local python=$root/.venv/bin/python
  [ -x "$python" ] || python=python3
  if [[ $workdir == gs://* ]] && command -v gcloud >/dev/null; then
    gcloud storage ls --recursive "$workdir"
  elif [[ $workdir == s3://* ]] && command -v aws >/dev/null; then
    aws s3 ls --recursive "$workdir" | awk '{print $4}'
  elif [[ $workdir == *://* ]]; then
    PYTHONPATH=$root "$python" -c 'import sys
from radit_jax.runtime.storage import bucket
print(*bucket.sizes(sys.argv[1]), sep="\n")' "$workdir"
  else
    find "$workdir" -type f
  fi
}

# progress: the names of all that is committed.
progress() {
  list_files 2>/dev/null | grep -v 'orbax-checkpoint-tmp' |
    grep -E '(manifest\.json|\.sha256|_CHECKPOINT_METADATA|commit_success\.txt)$' | sort || true
}

# once COMMAND...: run it; a signal that comes meanwhile goes to it.
once() {
  "$@" &
  child=$!
  while true; do
    signalled=''
    wait "$child" && return 0 || code=$?
    # A signal may have ended our waiting and not the child, whose own code bash remembers.
    [ -n "$signalled" ] && [ "$code" -gt 128 ] || return "$code"
  done
}

child='' stopped='' signalled=''
trap 'stopped=yes signalled=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM INT

if [ -n "$dry_run" ]; then
  show "${train[@]}"
  echo "# again after failures, $wait to $longest_wait s apart, until $failures in a row without progress in $workdir"
  exit
fi
failed=0 pause=$wait before=$(progress)
while true; do
  once "${train[@]}" && exit 0 || code=$?
  [ -z "$stopped" ] || exit "$code"
  after=$(progress)
  [ "$after" = "$before" ] || { failed=0 pause=$wait before=$after; }
  [ "$code" = 75 ] || failed=$((failed + 1))
  if [ "$failed" -ge "$failures" ]; then
    echo "supervise: exit code $code, and no progress in $failed runs; giving up" >&2
    exit "$code"
  fi
  echo "supervise: exit code $code; again in $pause s (failure $failed of $failures without progress)" >&2
  sleep "$pause" &
  wait $! || true
  [ -z "$stopped" ] || exit "$code"
  pause=$((pause * 2 > longest_wait ? longest_wait : pause * 2))
done
