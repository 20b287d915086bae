#!/usr/bin/env bash
# The main job, shown on two programs nobody changed: tests/demo.sh [build/bin/unblock]
# A redis-server with a million keys, and an asyncio program with a blocking worker.
# Leaves the recordings in build/demo/.
set -eu
cd "$(dirname "$0")/.."
unblock=${1:-build/bin/unblock}
out=build/demo
rm -rf "$out"
mkdir -p "$out/redis"

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\033[1m' plain=$'\033[0m'
fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
shown() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }

server=
cleanup() {
    if [ -n "$server" ]; then
        redis SHUTDOWN NOSAVE >/dev/null 2>&1 || true
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$out/redis"
}
trap cleanup EXIT

# A port that nobody listens on.
port=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis() { redis-cli -p "$port" "$@"; }

say "1. redis-server, as Debian ships it, with a million keys"
shown "$unblock run -t 20ms -o $out/redis.jsonl -- redis-server --port $port ..."
"$unblock" run -t 20ms --live=full -o "$out/redis.jsonl" -- redis-server --port "$port" --bind 127.0.0.1 \
    --dir "$out/redis" --save '' --enable-debug-command yes --loglevel warning >"$out/redis/log" &
server=$!
for _ in $(seq 100); do
    redis PING >/dev/null 2>&1 && break
    sleep 0.1
done
shown "redis-cli DEBUG POPULATE 1000000"
redis DEBUG POPULATE 1000000 >/dev/null
sleep 0.3
shown "redis-cli KEYS '*'"
redis KEYS '*' | tail -n 1 >/dev/null
sleep 0.3
shown "redis-cli DEBUG SLEEP 1.5"
redis DEBUG SLEEP 1.5 >/dev/null
sleep 0.3
redis SHUTDOWN NOSAVE >/dev/null 2>&1 || true
wait "$server" || true
server=
say "   the report"
shown "$unblock report $out/redis.jsonl"
"$unblock" report "$out/redis.jsonl"

say "2. the classic asyncio program: a ticker, a worker that blocks, one that computes, one that uses a thread"
shown "$unblock run -t 50ms -o $out/tutorial.jsonl -- python3 tests/programs/tutorial.py"
"$unblock" run -t 50ms --live=full -o "$out/tutorial.jsonl" -- /usr/bin/python3 tests/programs/tutorial.py
say "   the report"
shown "$unblock report $out/tutorial.jsonl"
"$unblock" report "$out/tutorial.jsonl"

say "Your own program:"
echo "    $unblock run -- your-server args"
