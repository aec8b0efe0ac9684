#!/usr/bin/env bash
# TPUs or GPUs under Kubernetes: a JobSet, which starts all hosts again when one is lost.
#
#   launch/gke.sh create --cluster=C --zone=Z --machine=ct5lp-hightpu-4t --topology=4x4 --hosts=4 --spot=yes
#   launch/gke.sh build  --image=REGION-docker.pkg.dev/PROJECT/REPO/radit
#   launch/gke.sh submit --image=... --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips=4 \
#                        --workdir=gs://BUCKET/radit_7b -- --stage=all ...
#   launch/gke.sh tail
#   launch/gke.sh delete
#
# --slices=N has N slices, each with a pool of its own and --hosts hosts, and one job uses them all.
# --kind=gpu is for NVIDIA GPUs: --machine=a3-highgpu-8g --accelerator=nvidia-h100-80gb --chips=8, no topology.
# --location=REGION is that of a regional cluster (--zone is where its machines are), --disk=500 the GB of a
# machine's disk, which keeps copies of what a run opens in the bucket. --name (radit) names pool and job,
# --restarts (100) is how often a job may start again after an error, --account the Kubernetes service account
# that may write the bucket. `submit` fills jobset.yaml or jobset_gpu.yaml in, and replaces a JobSet that has
# ended; --dry-run shows it.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

command=${1:-help}
shift || true
[ "$command" != help ] && [ "$command" != --help ] || { usage && exit; }
# shellcheck disable=SC2034 # fill() reads them by name
name=radit cluster='' zone='' machine='' topology='' hosts='' chips=4 accelerator='' image='' workdir=''
# shellcheck disable=SC2034
spot='' restarts=100 account=default slices=1 kind=tpu location='' disk=''
read_options name cluster zone machine topology hosts chips accelerator image workdir spot restarts account \
  slices kind location disk -- "$@"
case $kind in tpu | gpu) ;; *) die "--kind: expected tpu or gpu, got $kind" ;; esac
case $slices in '' | *[!0-9]* | 0*) die "expected --slices=1 or more, got --slices=$slices" ;; esac

create() {
  demand cluster zone machine hosts
  local options=("--cluster=$cluster" "--location=${location:-$zone}" "--node-locations=$zone" "--machine-type=$machine"
    "--num-nodes=$hosts" --scopes=cloud-platform)
  if [ "$kind" = gpu ]; then
    demand accelerator
    options+=("--accelerator=type=$accelerator,count=$chips,gpu-driver-version=latest")
  else
    demand topology
    options+=("--tpu-topology=$topology")
  fi
  [ -z "$disk" ] || options+=("--disk-size=$disk")
  [ -z "$spot" ] || options+=(--spot)
  if [ "$slices" = 1 ]; then
    run gcloud container node-pools create "$name" "${options[@]}"
    return
  fi
  local number
  for ((number = 0; number < slices; number++)); do
    run gcloud container node-pools create "$name-$number" "${options[@]}"
  done
}

build() {
  demand image
  local target=tpu
  [ "$kind" = tpu ] || target=cuda
  run docker build --file="$root/launch/Dockerfile" "--target=$target" --tag="$image" "$root"
  run docker push "$image"
}

# fill: the template with the options in the place of @OPTION@; @ARGUMENTS@ becomes a list of JSON strings.
fill() {
  local option text arguments='' word template=jobset.yaml words=(-m radit_jax.train "--workdir=$workdir")
  draw_token
  if [ "$kind" = gpu ]; then
    # A TPU's hosts know each other; of GPUs each is told, Kubernetes fills its number in.
    template=jobset_gpu.yaml
    # shellcheck disable=SC2016 # for Kubernetes
    words+=("--coordinator=$name-node-0-0.$name:8476" "--num-processes=$hosts" '--process-id=$(JOB_COMPLETION_INDEX)')
  fi
  text=$(cat "$root/launch/$template")
  for word in "${words[@]}" "${train[@]}"; do
    word=${word//\\/\\\\}
    arguments+=", \"${word//\"/\\\"}\""
  done
  for option in name slices hosts chips topology accelerator image restarts account token; do
    text=${text//"@${option^^}@"/"${!option}"}
  done
  printf '%s\n' "${text//@ARGUMENTS@/"[${arguments#, }]"}"
}

submit() {
  demand accelerator hosts image workdir
  [ "$kind" = gpu ] || demand topology
  case $workdir in gs://*) ;; *) die "--workdir: expected gs://BUCKET/FOLDER, since pods share no disk, got $workdir" ;; esac
  if [ -n "$dry_run" ]; then
    echo "# after the deletion of a JobSet $name that has ended; a running one is an error:"
    show kubectl create --filename=-
    fill
    return
  fi
  # Nothing of a JobSet can be changed, also when it has ended.
  local state
  state=$(kubectl get jobset "$name" --ignore-not-found '--output=jsonpath={.metadata.name} {.status.terminalState}')
  case $state in
    '') ;;
    *' Completed' | *' Failed') run kubectl delete jobset "$name" --wait ;;
    *) die "JobSet $name is running; delete it first, or give another --name" ;;
  esac
  fill | kubectl create --filename=-
}

case $command in
  create | build | submit) "$command" ;;
  tail)
    first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0"
    first+=",batch.kubernetes.io/job-completion-index=0"
    run kubectl logs --follow --tail=100 "--selector=$first"
    ;;
  delete) run kubectl delete jobset "$name" ;;
  *) die "no command $command; there are create, build, submit, tail and delete" ;;
esac
