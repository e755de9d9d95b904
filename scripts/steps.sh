# What the set-up says of itself. A step is one line; what its command prints is kept in a file, which an error names.
# Sourced, not run.
# shellcheck shell=bash
steps_log=build/setup.log

# megabytes: what apt-get would download, given what it prints with --print-uris, whose third word is a size; nothing if that
# is not known.
megabytes() { awk '{ bytes += $3 } END { if (bytes) printf "%.1f MB", bytes / 1e6 }'; }

# step WHAT COMMAND...
step() {
  local what=$1 began=$SECONDS before
  shift
  printf '%s ... ' "$what" >&2
  printf '\n== %s: %s\n' "$what" "$*" >>"$steps_log"
  before=$(wc -l <"$steps_log")
  if "$@" >>"$steps_log" 2>&1; then
    printf '%s s\n' "$((SECONDS - began))" >&2
  else
    printf 'failed:\n' >&2
    tail -n "+$((before + 1))" "$steps_log" | tail -n 20 >&2
    printf '%s: %s failed; all that it printed is in %s\n' "${0##*/}" "$what" "$PWD/$steps_log" >&2
    exit 1
  fi
}
