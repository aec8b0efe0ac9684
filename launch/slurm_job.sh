#!/usr/bin/env bash
# What a job of slurm.sh runs on its first node: the supervisor, and under it the processes on all nodes.
# sbatch runs a copy of this file in the checkout, so paths begin there.
#
#   --workdir=FOLDER --tasks=1 [--container=IMAGE --runtime=pyxis] -- --stage=all ...
# shellcheck source=launch/common.sh
. launch/common.sh

workdir='' tasks=1 container='' runtime=pyxis
read_options workdir tasks container runtime -- "$@"

# 1) The token is drawn here, for what sbatch is given can be read by others.
draw_token
export RADIT_JOIN_TOKEN=$token RADIT_JOIN_SECONDS=300
# Unless told otherwise, srun gives a task one core and a part of the memory.
step=(srun --kill-on-bad-exit=1 "--cpus-per-task=$((SLURM_CPUS_ON_NODE / tasks))" --cpu-bind=none --mem=0 --export=ALL)
command=(.venv/bin/python -m radit_jax.train)

# 2) In a container the folders that the run needs are mounted where they are; the image has `radit`.
if [ -n "$container" ]; then
  mounts=$PWD
  case $workdir in *://*) ;; *) mounts+=,$workdir ;; esac
  command=(python -m radit_jax.train)
  case $runtime in
    pyxis)
      mounted=$PWD:$PWD
      [ "$mounts" = "$PWD" ] || mounted+=,$workdir:$workdir
      step+=("--container-image=$container" "--container-mounts=$mounted" "--container-workdir=$PWD")
      ;;
    apptainer) command=(apptainer exec --nv "--bind=$mounts" "--pwd=$PWD" "$container" "${command[@]}") ;;
    *) die "--runtime: expected pyxis or apptainer, got $runtime" ;;
  esac
fi

# 3) The first task that ends badly ends the others. A stop (75) is one of all: each gets time to save. TERM comes
# to the task's shell, too, which waits for the run.
# shellcheck disable=SC2016 # for the tasks' shells
patient=(bash -c 'trap : TERM; "$@" || { code=$?; [ "$code" != 75 ] || sleep 20; exit "$code"; }' radit)
launch/supervise.sh "--workdir=$workdir" -- "${step[@]}" "${patient[@]}" "${command[@]}" "--workdir=$workdir" "${train[@]}" &
supervisor=$!

# 4) SLURM sends TERM before the job's time ends. What was stopped by it goes into the queue again.
trap 'stopped=yes; kill -TERM "$supervisor"' TERM
stopped='' code=0
wait "$supervisor" || code=$?
while kill -0 "$supervisor" 2>/dev/null; do
  wait "$supervisor" && code=0 || code=$?
done
if [ -n "$stopped" ] && [ "$code" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
