#!/usr/bin/env bash
# GPUs under SLURM: one process a node, which has all of the node's GPUs, or one for each GPU.
#
#   launch/slurm.sh submit --workdir=/shared/radit_7b --nodes=4 --gpus=8 --time=24:00:00 -- --stage=all ...
#   launch/slurm.sh tail   --job=12345
#   launch/slurm.sh cancel --job=12345
#
# The checkout, its .venv and the workdir are on a filesystem that all nodes see (the workdir may be a bucket).
# A job that is preempted, whose node fails, or whose --time ends is put into the queue again and goes on; what
# fails otherwise is started again by supervise.sh. SLURM sends TERM --grace seconds (300) before --time ends.
# --each-gpu=yes starts a process for each GPU, with its share of the node's cores; each then reads what a node
# would read once. --container=IMAGE runs in a container, by pyxis or with --runtime=apptainer (the image is
# that of `Dockerfile --target=cuda`). --partition, --account, --qos and --name are sbatch's; --dry-run shows
# every command.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

command=${1:-help}
shift || true
[ "$command" != help ] && [ "$command" != --help ] || { usage && exit; }
workdir='' nodes=1 gpus=8 time=24:00:00 grace=300 partition='' account='' qos='' name=radit job='' each_gpu=''
container='' runtime=pyxis
read_options workdir nodes gpus time grace partition account qos name job each-gpu container runtime -- "$@"

submit() {
  demand workdir
  local tasks=1
  [ -z "$each_gpu" ] || tasks=$gpus
  local options=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--gpus-per-node=$gpus" --exclusive
    "--time=$time" "--signal=B:TERM@$grace" --requeue --open-mode=append "--chdir=$root" "--output=$name-%j.log")
  [ -z "$partition" ] || options+=("--partition=$partition")
  [ -z "$account" ] || options+=("--account=$account")
  [ -z "$qos" ] || options+=("--qos=$qos")
  local job_options=("--workdir=$workdir" "--tasks=$tasks")
  [ -z "$container" ] || job_options+=("--container=$container" "--runtime=$runtime")
  run sbatch "${options[@]}" "$root/launch/slurm_job.sh" "${job_options[@]}" -- "${train[@]}"
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
