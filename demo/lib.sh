# shellcheck shell=bash
# What the two parts of the demo share: they narrate, show each command before it runs, and hold its result against what
# is expected. The first thing that is not as expected ends the demo with a message and exit code 1.
#
#   DEMO_PAUSE   seconds to wait before each command, for those who read along (demo/run sets it)
#   DEMO_BOLD    not empty: commands stand out

output='' # what the last command printed, stdout and stderr

chapter() { printf '\n=== %s ===\n' "$*"; }
say() { printf '\n# %s\n' "$*"; }

demo_die() {
  printf '\ndemo: not as expected: %s\n' "$*" >&2
  exit 1
}

# demo_do COMMAND-LINE: shows it and runs it; what it prints is shown at once and kept in $output. Returns its exit code.
demo_do() {
  local status=0 copy
  sleep "${DEMO_PAUSE:-0}"
  if [[ -n ${DEMO_BOLD-} ]]; then printf '\e[1m$ %s\e[0m\n' "$1"; else printf '$ %s\n' "$1"; fi
  copy=$(mktemp)
  # Callers test our exit code, so that `set -e` is off here. (The braces: bash 5.2 gives 1 for any failure of a bare eval in a pipe.)
  { eval "$1"; } 2>&1 | tee "$copy"
  status=${PIPESTATUS[0]}
  output=$(<"$copy")
  rm -f "$copy"
  return "$status"
}

# run COMMAND-LINE: it has to succeed.
run() {
  demo_do "$1" || demo_die "\`$1\` ended with exit code $?"
}

# refused CODE COMMAND-LINE: it has to end with this exit code, which is shown.
refused() {
  local status=0
  demo_do "$2" || status=$?
  printf '(exit code %s)\n' "$status"
  ((status == $1)) || demo_die "\`$2\` should have ended with exit code $1"
}

# shows TEXT, shows_not TEXT: whether the last command printed it.
shows() { [[ $output == *"$1"* ]] || demo_die "nothing above says \"$1\""; }
shows_not() { [[ $output != *"$1"* ]] || demo_die "something above still says \"$1\""; }

# property NAME: its value in the table that the last command printed.
property() {
  awk -F '|' -v name="$1" '{ gsub(/^ +| +$/, "", $2); gsub(/^ +| +$/, "", $3) } $2 == name { print $3; found = 1; exit }
    END { exit !found }' <<<"$output" || demo_die "the table above has no row $1"
}
