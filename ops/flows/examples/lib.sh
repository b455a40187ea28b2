# shellcheck shell=bash
# What every example host shares. An example's `host` script sources this file, defines `up` (and `down`, if stopping its
# processes is not enough), and ends with: main "$@"
#
#   host up   ROOT ADDRESS PORT   readies the software below a demo agent's deployment root
#   host hold ROOT                waits for SIGTERM, then does `down`; for whoever must not leave anything behind
#   host down ROOT                stops what runs from that root
#
# Exit 3 says that the software is not installed; the message names the Debian package.

set -euo pipefail

# need PROGRAM PACKAGE: the program must be on PATH.
need() {
  command -v "$1" >/dev/null 2>&1 || {
    printf '%s is not installed here; on Debian: apt-get install %s\n' "$1" "$2" >&2
    exit 3
  }
}

# background NAME COMMAND...: a process of its own session that stays; shared/NAME.pid and shared/NAME.log are its.
background() {
  local name="$1"
  shift
  (cd "$SHARED" && exec setsid "$@" >>"$SHARED/$name.log" 2>&1 </dev/null) &
  printf '%s\n' "$!" >"$SHARED/$name.pid"
}

# listening ADDRESS PORT: waits until somebody answers there, at most 20 s.
listening() {
  local until=$((SECONDS + 20))
  until (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; do
    [ $SECONDS -lt $until ] || {
      printf 'nothing listens on %s:%s\n' "$1" "$2" >&2
      exit 1
    }
    sleep 0.05
  done
}

# ours PID: does it run from this root? A pid file alone proves nothing: the number may be somebody else's by now.
ours() { [[ "$(readlink "/proc/$1/cwd" 2>/dev/null)/" == "$ROOT"/* ]]; }

# stop_processes: ends every process that a shared/*.pid names.
stop_processes() {
  local file pid until
  for file in "$SHARED"/*.pid; do
    [ -f "$file" ] || continue
    pid="$(tr -cd '0-9' <"$file")"
    if [ -n "$pid" ] && ours "$pid"; then
      kill "$pid" 2>/dev/null || true
      until=$((SECONDS + 5))
      while ours "$pid"; do
        [ $SECONDS -lt $until ] || kill -KILL "$pid" 2>/dev/null || true
        sleep 0.05
      done
    fi
    rm -f "$file"
  done
}

down() { stop_processes; }

main() {
  local what="${1:-}"
  mkdir -p "${2:?the deployment root}"
  ROOT="$(cd "$2" && pwd -P)"
  SHARED="$ROOT/shared"
  ADDRESS="${3:-127.0.0.1}" PORT="${4:-8080}"
  export ROOT SHARED ADDRESS PORT
  mkdir -p "$SHARED"
  case "$what" in
    up) up ;;
    hold)
      trap 'down; kill %1; exit 0' TERM INT
      sleep infinity &
      wait
      ;;
    down) down ;;
    *)
      printf 'usage: host up ROOT ADDRESS PORT | hold ROOT | down ROOT\n' >&2
      exit 2
      ;;
  esac
}
