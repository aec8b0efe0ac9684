#!/usr/bin/env bash
# A TPU VM or pod slice on Google Cloud, from nothing to results and back.
#
#   launch/tpu.sh create --name=radit --zone=us-west4-a --type=v5litepod-16 --spot=yes --bucket=gs://BUCKET
#   launch/tpu.sh setup  --name=radit --zone=us-west4-a
#   launch/tpu.sh run    --name=radit --zone=us-west4-a --workdir=gs://BUCKET/radit_7b -- --stage=all ...
#   launch/tpu.sh tail   --name=radit --zone=us-west4-a
#   launch/tpu.sh resume, with the options of create and run: whatever of the three is left to do
#   launch/tpu.sh delete --name=radit --zone=us-west4-a
#
# create   makes the machines, and the bucket if --bucket is given; --queued=yes waits in the queue for them
# setup    copies HEAD of this checkout to all hosts and installs it there; files that git does not keep come
#          from a bucket: --data=gs://BUCKET/data becomes data/ on every host
# run      starts the same training command on all hosts and follows it; its end is that of the training
# tail     follows a run whose terminal was lost
# resume   what a supervisor calls again and again: new machines if they were preempted, set up, run
#
# A host's boot disk has 100 GB, and keeps copies of what a run opens in the bucket (`radit plan` says how much).
# --data-disk=projects/P/zones/Z/disks/D is a larger disk of your own for a slice of one host, and holds the
# copies; on several hosts --scratch=/dev/shm/radit keeps them in memory. Where there are no machines to be had,
# the exit code is 75, and supervise.sh waits.
# --slices=N takes N slices of that type from the queue, and one run uses them all: give it to all commands.
# --project, --version (of the TPU's software) and --network are gcloud's; --dry-run shows every command.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

command=${1:-help}
shift || true
[ "$command" != help ] && [ "$command" != --help ] || { usage && exit; }
name='' zone='' type='' version='' project='' network='' workdir='' bucket='' spot='' queued='' slices=1
data='' data_disk='' scratch=''
read_options name zone type version project network workdir bucket spot queued slices data data-disk scratch \
  -- "$@"
demand name zone
case $slices in '' | *[!0-9]* | 0*) die "expected --slices=1 or more, got --slices=$slices" ;; esac
[ "$slices" = 1 ] || queued=yes  # only the queue has several
[ -z "$data_disk" ] || scratch=${scratch:-/mnt/radit/scratch}

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

software() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  demand type
  local options=("${where[@]}" "--accelerator-type=$type")
  [ -z "$network" ] || options+=("--network=$network")
  [ -z "$spot" ] || options+=(--spot)
  if [ -n "$data_disk" ]; then
    has_one_host || die "--data-disk: expected a slice of one host, which alone may write a disk, got $type: --scratch=/dev/shm/radit"
    options+=("--data-disk=source=$data_disk,mode=read-write")
  fi
  [ -z "$bucket" ] || create_bucket
  if [ -n "$queued" ]; then
    local nodes=("--node-id=$name")
    [ "$slices" = 1 ] || nodes=("--node-count=$slices" "--node-prefix=$name")
    obtain "${queue[@]}" create "$name" "${nodes[@]}" "--runtime-version=${version:-$(software)}" "${options[@]}"
    wait_for_machines
  else
    obtain "${tpu[@]}" create "$name" "--version=${version:-$(software)}" "${options[@]}"
  fi
}

has_one_host() {
  case $slices-$type in
    1-v5litepod-[148] | 1-v6e-[148] | 1-v4-8 | 1-v5p-8) return 0 ;;
    *) return 1 ;;
  esac
}

# obtain COMMAND...: run it; exit code 75 where there are no such machines to be had just now.
obtain() {
  local words code=0
  words=$(mktemp)
  run "$@" 2>"$words" || code=$?
  cat "$words" >&2
  if [ "$code" != 0 ] && grep -qi 'no more capacity\|resource_exhausted\|stockout\|resource_pool_exhausted' "$words"; then
    code=75
  fi
  rm "$words"
  [ "$code" = 0 ] || exit "$code"
}

create_bucket() {
  local create=(gcloud storage buckets create "$bucket" "--location=${zone%-*}" --uniform-bucket-level-access)
  [ -z "$project" ] || create+=("--project=$project")
  if [ -n "$dry_run" ]; then
    echo '# unless the bucket is there:'
    show "${create[@]}"
  elif ! gcloud storage buckets describe "$bucket" >/dev/null 2>&1; then
    run "${create[@]}"
  fi
}

# The state of what was created, or NONE where gcloud finds no such thing. Any other failure of gcloud is tried
# again, for by NONE `resume` would take a place in the queue for lost.
state() {
  local describe=("${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)') errors tries
  [ -z "$queued" ] || describe=("${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)')
  errors=$(mktemp)
  for tries in 1 2 3 4 5; do
    if "${describe[@]}" 2>"$errors"; then
      rm "$errors" && return
    elif grep -q 'NOT_FOUND\|was not found' "$errors"; then
      rm "$errors" && echo NONE && return
    fi
    [ "$tries" = 5 ] || sleep 20
  done
  cat "$errors" >&2 && rm "$errors"
  die "gcloud could not say the state of $name ($tries tries; its words are above); run the same command again"
}

wait_for_machines() {
  [ -z "$dry_run" ] || { echo "# every 60 s, until it is ACTIVE:" && show_state && return; }
  local now
  while now=$(state) && [ "$now" != ACTIVE ] && [ "$now" != READY ]; do
    case $now in
      FAILED | NONE) die "$name is $now; see its events in the console" ;;
      SUSPENDED | PREEMPTED | STOPPED | TERMINATED)
        echo "$name is $now before it was ACTIVE; run the same command again" >&2
        exit 75
        ;;
    esac
    echo "$name is $now"
    sleep 60
  done
  [ -n "$now" ]  # else `state` has said why
}

show_state() {
  if [ -n "$queued" ]; then
    show "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
  else
    show "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)'
  fi
}

# nodes: the names of the slices. gcloud numbers several by their prefix, and slice 0 has process 0.
nodes() {
  local number
  [ "$slices" != 1 ] || { echo "$name" && return; }
  for ((number = 0; number < slices; number++)); do echo "$name-$number"; done
}

# on WORKER SCRIPT: a shell script on one host of the first slice, or on `all` hosts of all slices.
on() {
  local node
  for node in $(nodes); do
    run "${tpu[@]}" ssh "$node" "${where[@]}" "--worker=$1" "--command=$2" || return
    [ "$1" = all ] || return 0
  done
}

setup() {
  archive=ARCHIVE
  [ -n "$dry_run" ] || { archive=$(mktemp) && trap 'rm -f "$archive"' EXIT; }
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  local node
  for node in $(nodes); do
    run "${tpu[@]}" scp "$archive" "$node:radit_jax.tar.gz" "${where[@]}" --worker=all
  done
  on all 'set -e
mkdir -p radit_jax && tar -xzf radit_jax.tar.gz -C radit_jax && cd radit_jax
python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --clear --python=3.11 .venv
~/.local/bin/uv pip install -q -c constraints.txt -e ".[tpu,gcs]"'
  [ -z "$data" ] || on all "cd radit_jax && mkdir -p data && gcloud storage rsync --recursive $(show "$data") data"
  # An empty disk gets a filesystem.
  # shellcheck disable=SC2016 # for the host's shell
  [ -z "$data_disk" ] || on all 'set -e
disk=$(ls /dev/disk/by-id/google-persistent-disk-1 /dev/disk/by-id/google-*-1 2>/dev/null | head -n 1)
sudo blkid "$disk" >/dev/null || sudo mkfs.ext4 -q -m 0 "$disk"
sudo mkdir -p /mnt/radit && { mountpoint -q /mnt/radit || sudo mount -o discard,defaults "$disk" /mnt/radit; }
sudo chown "$USER" /mnt/radit'
}

start() {
  demand workdir
  case $workdir in gs://*) ;; *) die "--workdir: expected gs://BUCKET/FOLDER, since hosts share no disk, got $workdir" ;; esac
  draw_token
  local options=("--workdir=$workdir")
  [ -z "$scratch" ] || options+=("--scratch=$scratch")
  # The log is there before anybody follows it.
  on all "cd radit_jax && rm -f status && : >train.log
RADIT_JOIN_TOKEN=$token RADIT_JOIN_SECONDS=300 nohup sh -c $(show "$(show .venv/bin/python -m radit_jax.train "${options[@]}" "${train[@]}")
echo \$? >status") >>train.log 2>&1 </dev/null &
echo \$! >pid"
}

follow() {
  # shellcheck disable=SC2016 # for the host's shell
  on 0 'cd radit_jax && tail --pid="$(cat pid)" -n 100 -f train.log; exit "$(cat status)"'
}

resume() {
  local now=NONE
  if [ -n "$dry_run" ]; then
    show_state
    echo '# ACTIVE or READY: on with the run, after setup where a host has none; NONE: create and setup;'
    echo '# still in the queue or being made: wait, then setup; PREEMPTED and the like: delete, create and setup'
  else
    now=$(state)
  fi
  case $now in
    ACTIVE | READY) prepare ;;
    NONE) create_and_set_up ;;
    ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES | CREATING | STARTING)
      wait_for_machines
      setup
      ;;
    *)
      delete
      create_and_set_up
      ;;
  esac
  start
  follow
}

create_and_set_up() {
  create
  setup
}

# prepare: on machines that are there, install where a host lacks it, and end a run whose follower was lost,
# which would hold the workdir's lock.
prepare() {
  if ! on all 'test -x radit_jax/.venv/bin/python'; then
    setup
  fi
  # shellcheck disable=SC2016 # for the host's shell
  on all 'cd radit_jax && if [ -e pid ] && pkill -P "$(cat pid)"; then tail --pid="$(cat pid)" -f /dev/null; fi'
}

delete() {
  if [ -n "$queued" ]; then
    run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
  else
    run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  fi
}

case $command in
  create | setup | resume | delete) "$command" ;;
  run)
    start
    follow
    ;;
  tail) follow ;;
  *) die "no command $command; there are create, setup, run, tail, resume and delete" ;;
esac
