#!/usr/bin/env bash
# Does to a cluster of real nodes, for as long as you like, everything that happens to machines and networks while people
# talk, and tells in the end whether a promise was broken. Ends with 0 when every promise held.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'END'
usage: scripts/chaos.sh [--minutes M] [--seed S] [--nodes N] [--faults F,F…]

  --minutes M    how long (default 2)
  --seed S       a number that draws the same faults again (default: a fresh one, which is printed)
  --nodes N      how many nodes (default 3)
  --faults F,F…  only these, of: kill freeze cut lag stop wipe disk clock crowd (default: all)
END
}

fail() {
  echo "chaos: $1" >&2
  usage >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --minutes | --seed | --nodes | --faults)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --minutes) export PARLEY_CHAOS_MINUTES=$2 ;;
        --seed) export PARLEY_CHAOS_SEED=$2 ;;
        --nodes) export PARLEY_CHAOS_NODES=$2 ;;
        --faults) export PARLEY_CHAOS_FAULTS=$2 ;;
      esac
      shift 2
      ;;
    *) fail "unknown argument: $1" ;;
  esac
done

export PARLEY_CHAOS_SEED=${PARLEY_CHAOS_SEED:-$((RANDOM << 15 | RANDOM))}

echo "building the nodes and the harness"
export RUST_BACKTRACE=0
cargo test --quiet --locked --features fault-injection --test chaos --no-run
exec cargo test --quiet --locked --features fault-injection --test chaos -- --nocapture --exact \
  a_mix_of_everything_breaks_no_promise
