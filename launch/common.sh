# shellcheck shell=bash
# What the scripts share: options, and running or only showing a command. Sourced, not run.
set -euo pipefail

# shellcheck disable=SC2034 # the scripts use it, and `train` below
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=''

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# show COMMAND...: print it as it could be typed.
show() {
  local word line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "${line# }"
}

# run COMMAND...: run it, or with --dry-run only show it.
run() {
  local shown
  shown=$(show "$@")
  printf '%s\n' "${shown//"${token:-RANDOM}"/RANDOM}"
  [ -n "$dry_run" ] || "$@"
}

# draw_token: set `token`, by which a run's processes know each other (RADIT_JOIN_TOKEN); it is never shown.
draw_token() {
  token=RANDOM
  [ -n "$dry_run" ] || token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
}

# usage: print the comment at the top of the script that was started.
usage() {
  sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0"
}

# read_options NAMES... -- ARGUMENTS...: set a variable for each --NAME=VALUE; what follows -- is `train`.
# shellcheck disable=SC2034
read_options() {
  local names=' ' option
  while [ "$1" != -- ]; do
    names+="$1 "
    shift
  done
  shift
  train=()
  for option in "$@"; do
    [[ $option != *[[:cntrl:]]* ]] || die "expected options without line ends and control characters, got $(printf %q "$option")"
  done
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift && train=("$@") && return ;;
      --dry-run) dry_run=yes ;;
      --help | -h) usage && exit ;;
      --*=*)
        option=${1%%=*} && option=${option#--}
        [[ $names == *" $option "* ]] || die "no option --$option; there are$names(see --help)"
        printf -v "${option//-/_}" '%s' "${1#*=}"
        ;;
      *) die "expected --NAME=VALUE, --spot=yes for example, got $1 (see --help)" ;;
    esac
    shift
  done
}

# demand NAMES...: these options must have been given.
demand() {
  local option
  for option in "$@"; do
    option=${option//-/_}
    [ -n "${!option:-}" ] || die "--${option//_/-} is needed (see --help)"
  done
}
