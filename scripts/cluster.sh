#!/usr/bin/env bash
# Runs a cluster on one machine: for development, for tests, and to see what it survives.
#
#   scripts/cluster.sh up          three nodes, http://127.0.0.1:8081 to 8083
#   scripts/cluster.sh kill 1      … and the other two go on
#
# It ends only processes that it started: a node counts as ours while the process named in its pid file was started
# with the node's config file.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
http_base=${PARLEY_HTTP_BASE:-8081}
link_base=${PARLEY_CLUSTER_BASE:-7101}
dir=${PARLEY_CLUSTER_DIR:-$repo/target/cluster}
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac

nodes_max=9        # a node has at most 8 peers
ready_wait_s=60    # for a cluster to be founded, or to come back
start_wait_s=20    # for one node to answer
stop_wait_s=15     # a graceful stop takes at most 10 s
log_lines=15       # of each node, when something went wrong

usage() {
  cat <<'END'
usage: scripts/cluster.sh VERB

  up [N=3]    start N nodes and wait until every shard has a leader and every node is ready
  status      which nodes run, and the cluster as one of them sees it
  kill I      end node I at once (SIGKILL)
  pause I     freeze node I (SIGSTOP)
  resume I    let it go on (SIGCONT)
  stop I      stop node I gracefully (SIGTERM)
  start I     start node I again
  down        stop all nodes gracefully
  clean       down, and remove the nodes' files

environment: PARLEY_BIN (the program; else it is built for release), PARLEY_HTTP_BASE (8081), PARLEY_CLUSTER_BASE
(7101), PARLEY_CLUSTER_DIR (target/cluster), PARLEY_EXTRA_TOML (config lines for every node)
END
}

fail() {
  printf 'cluster.sh: %s\n' "$*" >&2
  exit 1
}

say() { printf '%s\n' "$*"; }

# What the nodes said last, for whoever has to find out why.
show_logs() {
  local i
  for i in "$@"; do
    printf -- '--- n%s said last (%s):\n' "$i" "$dir/n$i.log" >&2
    tail -n "$log_lines" "$dir/n$i.log" >&2 || true
  done
}

# The program, in $bin.
find_program() {
  bin=${PARLEY_BIN:-}
  if [ -z "$bin" ]; then
    (cd "$repo" && cargo build --release --quiet --bin parley) || fail "the program cannot be built"
    bin=${CARGO_TARGET_DIR:-$repo/target}/release/parley
  fi
  [ -x "$bin" ] || fail "$bin is not a program; build it, or name another in PARLEY_BIN"
}

http_port() { echo $((http_base + $1 - 1)); }
link_port() { echo $((link_base + $1 - 1)); }
url() { echo "http://127.0.0.1:$(http_port "$1")"; }

# The numbers of the nodes that have been set up here, in order.
known() {
  local i
  for ((i = 1; i <= nodes_max; i++)); do
    if [ -f "$dir/n$i.toml" ]; then echo "$i"; fi
  done
}

# ---- processes

# The process of node I in $pid; fails unless it runs and is ours.
find_process() {
  local words word
  pid=
  [ -f "$dir/n$1.pid" ] || return 1
  read -r pid <"$dir/n$1.pid" || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  if [ -d /proc/self ]; then
    mapfile -d '' -t words 2>/dev/null <"/proc/$pid/cmdline" || return 1
  else
    read -r -a words < <(ps -o args= -p "$pid") || return 1
  fi 2>/dev/null
  for word in ${words[@]+"${words[@]}"}; do
    if [ "$word" = "$dir/n$1.toml" ]; then return 0; fi
  done
  return 1
}

is_running() { find_process "$1"; }
is_gone() { ! find_process "$1"; }
is_paused() {
  local state
  find_process "$1" || return 1
  if [ -d /proc/self ]; then
    read -r _ _ state _ <"/proc/$pid/stat" || return 1
  else
    state=$(ps -o stat= -p "$pid") || return 1
  fi 2>/dev/null
  [[ $state == T* ]]
}

# Waits until COMMAND succeeds, for at most SECONDS_MAX.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    if ((SECONDS >= end)); then return 1; fi
    sleep 0.05
  done
}

signal() {
  find_process "$2" || fail "n$2 does not run"
  kill -s "$1" "$pid"
}

# Starts node I without waiting for it.
spawn() {
  local start=()
  # Of a session of its own, so that Ctrl-C at the terminal is not meant for it.
  if command -v setsid >/dev/null; then start=(setsid); fi
  # Variables would win over the file.
  env -u PARLEY_NODE_NAME -u PARLEY_NODE_DATA -u PARLEY_HTTP_LISTEN -u PARLEY_HTTP_ADVERTISE \
    -u PARLEY_CLUSTER_LISTEN -u PARLEY_CLUSTER_PEERS -u PARLEY_CLUSTER_COOKIE -u PARLEY_CLUSTER_COOKIE_FILE \
    ${start[@]+"${start[@]}"} "$bin" serve --config "$dir/n$1.toml" </dev/null >>"$dir/n$1.log" 2>&1 &
  echo $! >"$dir/n$1.pid"
  # Until it has become the program it is not recognised as ours.
  local child=$!
  is_ours_or_gone() { is_running "$1" || ! kill -0 "$child" 2>/dev/null; }
  wait_until "$start_wait_s" is_ours_or_gone "$1" || fail "n$1 does not start"
}

# ---- what nodes answer

# Asks node I for PATH, prints the answer, and fails unless it is 200.
ask() {
  timeout 3 bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$0"
    printf "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n" "$1" "$0" >&3
    read -r _ status _ <&3
    cat <&3
    [ "$status" = 200 ]
  ' "$(http_port "$1")" "$2" 2>/dev/null
}

is_up() { ask "$1" /healthz >/dev/null; }

# Whether node I is ready and knows a leader of every shard. What is amiss is left in $amiss.
is_whole() {
  local answer
  if is_gone "$1"; then
    amiss="n$1 has ended"
    return 1
  fi
  if ! answer=$(ask "$1" /readyz); then
    # The last line of a refusal says why.
    amiss="n$1 is not ready: $(tail -n 1 <<<"${answer:-it does not answer}")"
    return 1
  fi
  if ! answer=$(ask "$1" /api/cluster); then
    amiss="n$1 does not say what its cluster is like"
    return 1
  fi
  if [[ $answer != *'"leader":"'* || $answer == *'"leader":null'* ]]; then
    amiss="n$1 sees a shard without a leader"
    return 1
  fi
}

all_whole_or_one_gone() {
  local i
  for i in $nodes; do
    if is_gone "$i"; then return 0; fi
  done
  for i in $nodes; do
    is_whole "$i" || return 1
  done
}

# ---- files

# Writes a node's config: ours, and PARLEY_EXTRA_TOML. A section may be opened once only, so where the extra lines open
# one of ours, our keys go below that heading; elsewhere they stand alone, before all headings.
write_config() {
  local i=$1 count=$2 extra=${PARLEY_EXTRA_TOML:-} peers="" j section key value line
  for ((j = 1; j <= count; j++)); do
    if ((j != i)); then peers+="${peers:+, }\"n$j=127.0.0.1:$(link_port "$j")\""; fi
  done
  local ours=(
    "node name \"n$i\""
    "node data \"$dir/n$i\""
    "http listen \"127.0.0.1:$(http_port "$i")\""
    "cluster listen \"127.0.0.1:$(link_port "$i")\""
    "cluster peers [$peers]"
    "cluster cookie_file \"$dir/cookie\""
  )
  local alone="" opened=""
  while IFS= read -r line; do
    opened+="$line"$'\n'
    if [[ $line =~ ^[[:space:]]*\[[[:space:]]*(node|http|cluster)[[:space:]]*\] ]]; then
      for entry in "${ours[@]}"; do
        read -r section key value <<<"$entry"
        if [ "$section" = "${BASH_REMATCH[1]}" ]; then opened+="$key = $value"$'\n'; fi
      done
    fi
  done <<<"$extra"
  for entry in "${ours[@]}"; do
    read -r section key value <<<"$entry"
    if ! grep -Eq "^[[:space:]]*\[[[:space:]]*$section[[:space:]]*\]" <<<"$extra"; then
      alone+="$section.$key = $value"$'\n'
    fi
  done
  printf '%s%s' "$alone" "$opened" >"$dir/n$i.toml"
}

write_cookie() {
  [ -s "$dir/cookie" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/cookie")
}

# ---- verbs

up() {
  local count=${1:-} i already
  already=$(known | wc -l)
  if [ -z "$count" ]; then count=$((already > 0 ? already : 3)); fi
  if ! [[ $count =~ ^[1-9]$ ]]; then fail "a cluster has 1 to $nodes_max nodes, not $count"; fi
  if ((already > 0 && already != count)); then
    fail "there is a cluster of $already in $dir; \`clean\` removes it"
  fi
  find_program
  mkdir -p "$dir"
  write_cookie
  nodes=$(seq "$count")
  for i in $nodes; do
    if is_running "$i"; then continue; fi
    write_config "$i" "$count"
    spawn "$i"
  done
  amiss=""
  wait_until "$ready_wait_s" all_whole_or_one_gone || true
  for i in $nodes; do
    if ! is_whole "$i"; then
      show_logs $nodes
      fail "$amiss; what runs is left as it is, \`down\` stops it"
    fi
  done
  for i in $nodes; do
    find_process "$i"
    say "n$i up $(url "$i") pid $pid"
  done
}

status() {
  local i answering=""
  if [ -z "$(known)" ]; then fail "there is no cluster in $dir"; fi
  for i in $(known); do
    if is_gone "$i"; then
      say "n$i stopped"
    elif is_paused "$i"; then
      say "n$i paused pid $pid"
    else
      say "n$i running $(url "$i") pid $pid"
      if [ -z "$answering" ] && is_up "$i"; then answering=$i; fi
    fi
  done
  if [ -z "$answering" ]; then fail "no node answers"; fi
  find_program
  say ""
  "$bin" status --url "$(url "$answering")"
}

kill_node() {
  signal KILL "$1"
  wait_until "$stop_wait_s" is_gone "$1" || fail "n$1 does not end"
  rm -f "$dir/n$1.pid"
  say "n$1 killed"
}

pause_node() {
  signal STOP "$1"
  wait_until "$stop_wait_s" is_paused "$1" || fail "n$1 does not pause"
  say "n$1 paused"
}

resume_node() {
  signal CONT "$1"
  say "n$1 resumed"
}

stop_node() {
  signal TERM "$1"
  # A frozen node hears it when it goes on.
  kill -s CONT "$pid"
  if ! wait_until "$stop_wait_s" is_gone "$1"; then
    show_logs "$1"
    fail "n$1 has not stopped within $stop_wait_s s"
  fi
  rm -f "$dir/n$1.pid"
  say "n$1 stopped"
}

start_node() {
  if is_running "$1"; then fail "n$1 runs already"; fi
  find_program
  spawn "$1"
  is_up_or_gone() { is_gone "$1" || is_up "$1"; }
  # Not until it is ready: alone of a cluster that was stopped it will not be, until others are started too.
  if ! wait_until "$start_wait_s" is_up_or_gone "$1" || is_gone "$1"; then
    show_logs "$1"
    fail "n$1 does not start"
  fi
  find_process "$1"
  say "n$1 up $(url "$1") pid $pid"
}

down() {
  local i running="" late=""
  for i in $(known); do
    if find_process "$i"; then
      kill -s TERM "$pid"
      kill -s CONT "$pid"
      running+=" $i"
    fi
  done
  for i in $running; do
    if ! wait_until "$stop_wait_s" is_gone "$i"; then
      late+=" n$i"
      show_logs "$i"
      if find_process "$i"; then kill -s KILL "$pid"; fi
    else
      say "n$i stopped"
    fi
  done
  for i in $(known); do rm -f "$dir/n$i.pid"; done
  if [ -n "$late" ]; then fail "had to be killed:$late"; fi
}

clean() {
  down
  local i
  for i in $(known); do
    # Also what was set aside beside the folder, under a longer name.
    rm -rf "$dir/n$i" "$dir/n$i".* "$dir/n$i"-*
  done
  rm -f "$dir/cookie"
  rmdir "$dir" 2>/dev/null || true
}

# ---- what is asked

with_node() {
  local verb=$1 i=${2:-}
  if ! [[ $i =~ ^[1-9]$ ]]; then fail "$verb which node? Give its number"; fi
  [ -f "$dir/n$i.toml" ] || fail "there is no n$i in $dir; \`up\` makes a cluster"
  "${verb}_node" "$i"
}

verb=${1:-}
case $verb in
  up) if (($# <= 2)); then up "${2:-}"; else usage >&2; exit 2; fi ;;
  kill | pause | resume | stop | start) if (($# <= 2)); then with_node "$@"; else usage >&2; exit 2; fi ;;
  status | down | clean) if (($# == 1)); then "$verb"; else usage >&2; exit 2; fi ;;
  help | --help | -h) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
