# What vm/fetch and vm/run both need to know; sourced, not run.
# shellcheck shell=bash

# The number changes when the layout of the cache does, so that an old cache is never misread.
cache_root=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ublk-supervisor/vm/1

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

kernel_dir() { printf '%s/kernels/%s' "$cache_root" "$1"; }

# Each of these directories is renamed into place when it is complete, so that it exists is all there is to check.
have_kernel() { [[ -d $cache_root/kernels/$1 ]]; }
have_tools() { [[ -d $cache_root/tools ]]; }
