#!/usr/bin/env bash
# Runs every test: the rules, the program from outside over real sockets, the page in a real browser.
# Installs what the browser tests need where it is missing: Chromium from Debian, their libraries from npm.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

if ! command -v "${CHROMIUM:-chromium}" >/dev/null; then
  step "installing Chromium"
  sudo=""
  if [ "$(id -u)" -ne 0 ]; then sudo="sudo"; fi
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi

step "tests in Rust"
cargo test --features fault-injection "$@"

step "tests in a browser"
cargo build --features fault-injection
binary="$(realpath "${CARGO_TARGET_DIR:-target}")/debug/parley"
cd tests/browser
npm ci --no-audit --no-fund --loglevel=error
PARLEY_BIN="$binary" npm test
