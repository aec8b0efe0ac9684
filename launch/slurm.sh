#!/usr/bin/env bash
# GPUs under SLURM: one process a node, which has all of the node's GPUs, or one for each GPU.
#
#   launch/slurm.sh submit --workdir=/shared/radit_7b --nodes=4 --gpus=8 --time=24:00:00 -- --stage=all ...
#   launch/slurm.sh tail   --job=12345
#   launch/slurm.sh cancel --job=12345
#
# The checkout, its .venv and the workdir are on a filesystem that all nodes see (the workdir may be a bucket).
# A job that is preempted, or whose node fails, is put into the queue again; what fails otherwise is started
# again by supervise.sh. --each-gpu=yes starts a process for each GPU, with its share of the node's cores; each
# then reads what a node would read once. --partition, --account, --qos and --name are sbatch's; --dry-run shows
# every command.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

command=${1:-help}
shift || true
[ "$command" != help ] && [ "$command" != --help ] || { usage && exit; }
workdir='' nodes=1 gpus=8 time=24:00:00 partition='' account='' qos='' name=radit job='' each_gpu=''
read_options workdir nodes gpus time partition account qos name job each-gpu -- "$@"

submit() {
  demand workdir
  local tasks=1
  [ -z "$each_gpu" ] || tasks=$gpus
  local options=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--gpus-per-node=$gpus" --exclusive
    "--time=$time" --requeue --open-mode=append "--chdir=$root" "--output=$name-%j.log")
  [ -z "$partition" ] || options+=("--partition=$partition")
  [ -z "$account" ] || options+=("--account=$account")
  [ -z "$qos" ] || options+=("--qos=$qos")
  # A node that stops takes the others with it, so that all start again together. The token is drawn in the job,
  # for what sbatch is given can be read by others. Unless told otherwise, srun gives a task one core.
  run sbatch "${options[@]}" "--wrap=RADIT_JOIN_TOKEN=\$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')
export RADIT_JOIN_TOKEN
exec launch/supervise.sh $(show "--workdir=$workdir") -- \
srun --kill-on-bad-exit=1 --cpus-per-task=\$((SLURM_CPUS_ON_NODE / $tasks)) --cpu-bind=none --mem=0 \
--export=ALL,RADIT_JOIN_SECONDS=300 \
$(show .venv/bin/python -m radit_jax.train "--workdir=$workdir" "${train[@]}")"
}

case $command in
  submit) submit ;;
  tail)
    demand job
    run tail -n 100 -F "$root/$name-$job.log"
    ;;
  cancel)
    demand job
    run scancel "$job"
    ;;
  *) die "no command $command; there are submit, tail and cancel" ;;
esac
