#!/usr/bin/env bash
# Starts a command again when it ends in failure, until it succeeds or stops making progress.
#
#   launch/supervise.sh --workdir=gs://BUCKET/radit_7b -- launch/tpu.sh resume --name=radit ...
#   launch/supervise.sh --workdir=runs/tiny -- python -m radit_jax.train --stage=all --workdir=runs/tiny
#
# Progress is whatever a run has committed in the workdir since: a stage, a shard, a checkpoint. The pause
# before a restart doubles from --wait seconds (10) up to --longest-wait (600), and is short again after
# progress; after --failures (5) failures in a row without any it gives up with the command's exit code.
# TERM and INT go to the command, and nothing is started after them.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

workdir='' failures=5 wait=10 longest_wait=600
read_options workdir failures wait longest-wait -- "$@"
demand workdir
[ ${#train[@]} -gt 0 ] || die "expected a command behind --, got none (see --help)"

# progress: the names of all that is committed.
progress() {
  case $workdir in
    gs://*) gcloud storage ls --recursive "$workdir" ;;
    s3://*) aws s3 ls --recursive "$workdir" | awk '{print $4}' ;;
    *) find "$workdir" -type f ;;
  esac 2>/dev/null | grep -v 'orbax-checkpoint-tmp' |
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
  failed=$((failed + 1))
  [ "$after" = "$before" ] || { failed=1 pause=$wait before=$after; }
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
