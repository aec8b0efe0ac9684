#!/usr/bin/env bash
# TPUs under Kubernetes: a JobSet on a node pool a slice, which starts all hosts again when one is lost.
#
#   launch/gke.sh create --cluster=C --zone=Z --machine=ct5lp-hightpu-4t --topology=4x4 --hosts=4 --spot=yes
#   launch/gke.sh build  --image=REGION-docker.pkg.dev/PROJECT/REPO/radit
#   launch/gke.sh submit --image=... --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips=4 \
#                        --workdir=gs://BUCKET/radit_7b -- --stage=all ...
#   launch/gke.sh tail
#   launch/gke.sh delete
#
# --slices=N has N slices, each with a pool of its own and --hosts hosts, and one job uses them all.
# --name (radit) names pool and job, --restarts (100) is how often a job may start again, --account the
# Kubernetes service account that may write the bucket. `submit` fills jobset.yaml in; --dry-run shows it.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

command=${1:-help}
shift || true
[ "$command" != help ] && [ "$command" != --help ] || { usage && exit; }
# shellcheck disable=SC2034 # fill() reads them by name
name=radit cluster='' zone='' machine='' topology='' hosts='' chips=4 accelerator='' image='' workdir=''
# shellcheck disable=SC2034
spot='' restarts=100 account=default slices=1
read_options name cluster zone machine topology hosts chips accelerator image workdir spot restarts account \
  slices -- "$@"
case $slices in '' | *[!0-9]* | 0*) die "expected --slices=1 or more, got --slices=$slices" ;; esac

create() {
  demand cluster zone machine topology hosts
  local options=("--cluster=$cluster" "--location=$zone" "--node-locations=$zone" "--machine-type=$machine"
    "--tpu-topology=$topology" "--num-nodes=$hosts" --scopes=cloud-platform)
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
  run docker build --file="$root/launch/Dockerfile" --target=tpu --tag="$image" "$root"
  run docker push "$image"
}

# fill: jobset.yaml with the options in the place of @OPTION@; @ARGUMENTS@ becomes a list of JSON strings.
fill() {
  local option text arguments='' word
  draw_token
  text=$(cat "$root/launch/jobset.yaml")
  for word in -m radit_jax.train "--workdir=$workdir" "${train[@]}"; do
    word=${word//\\/\\\\}
    arguments+=", \"${word//\"/\\\"}\""
  done
  for option in name slices hosts chips topology accelerator image restarts account token; do
    text=${text//"@${option^^}@"/"${!option}"}
  done
  printf '%s\n' "${text//@ARGUMENTS@/"[${arguments#, }]"}"
}

submit() {
  demand accelerator topology hosts image workdir
  case $workdir in gs://*) ;; *) die "--workdir: expected gs://BUCKET/FOLDER, since pods share no disk, got $workdir" ;; esac
  if [ -n "$dry_run" ]; then
    show kubectl apply --filename=-
    fill
  else
    fill | kubectl apply --filename=-
  fi
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
