#!/usr/bin/env bash
# postgres.sh DIR PGINSTALL SECONDS: a PostgreSQL cluster with checksums in DIR, loaded by four clients, stopped without a
# checkpoint, and stopped by kill -9; after each it recovers, its books balance and every page has its checksum.
#
# PGINSTALL is the directory with bin/, lib/ and share/ of PyPI's pgserver. As root the server runs as nobody.
set -eu
dir=$1 install=$2 seconds=$3
# A socket's path has at most 108 bytes, and nobody must reach the programs, wherever they were installed.
near=$(mktemp -d /tmp/postgres.XXXXXX)
server=
end() {
    # Ours alone: the number was read from the cluster's own file.
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$near"
}
trap end EXIT
cp -a "$install" "$near/pg"
cp -a "$install/../../pgserver.libs" "$near/libs"
export LD_LIBRARY_PATH=$near/libs:$near/pg/lib
chmod 755 "$near"
mkdir "$near/socket"
as=()
if [ "$(id -u)" -eq 0 ]; then
    chown nobody: "$dir" "$near/socket"
    as=(setpriv --reuid nobody --regid nogroup --clear-groups)
fi
data=$dir/cluster
pg() { # PROGRAM ARGUMENT…
    local program=$1
    shift
    (cd / && "${as[@]}" env HOME="$near/socket" "$near/pg/bin/$program" "$@")
}
sql() { pg psql -h "$near/socket" -U postgres -qAtX -v ON_ERROR_STOP=1 -c "$1" postgres; }
start() { # a child of this script, which reaps it: the lock file names a zombie's number for as long as there is one
    (
        cd / && exec "${as[@]}" env HOME="$near/socket" "$near/pg/bin/postgres" -D "$data" -k "$near/socket" \
            -c listen_addresses= -c shared_buffers=32MB -c checkpoint_timeout=30s -c max_wal_size=64MB
    ) >>"$near/log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        if pg pg_isready -q -h "$near/socket"; then return; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    wait "$server" || true
    server=
    return 1
}
stop() { # SIGNAL: TERM waits for clients, INT does not, QUIT makes no checkpoint, KILL asks nobody
    kill -s "$1" "$server"
    wait "$server" || true
    server=
}
balanced() { # each transaction adds one amount to an account, a teller and a branch, and notes it
    local sums
    sums=$(sql "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
        and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)
        and (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history)")
    [ "$sums" = t ] || { echo "postgres: $1: the books do not balance" >&2; exit 1; }
    # What a client was told is committed is there.
    noted=$(sql "select count(*) from pgbench_history")
    [ "$noted" -ge "$2" ] || { echo "postgres: $1: $noted transactions of $2" >&2; exit 1; }
}
load() { # SECONDS: the number of transactions that clients were told of
    pg pgbench -h "$near/socket" -U postgres -c 4 -j 2 -T "$1" -n postgres 2>&1
}

pg initdb -D "$data" -U postgres -k -A trust --no-instructions -E UTF8 --locale=C >"$near/initdb.log"
start
pg pgbench -h "$near/socket" -U postgres -i -s 2 -q postgres >/dev/null 2>&1
done=$(load "$seconds" | sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p')
[ "${done:-0}" -gt 0 ] || { echo "postgres: no transaction was made" >&2; exit 1; }
balanced "after the load" "$done"

load "$seconds" >"$near/load.log" &
sleep $((seconds / 2 + 1))
stop QUIT
wait || true
start
balanced "after an immediate stop" "$done"
before=$(sql "select count(*) from pgbench_history")

load "$seconds" >"$near/load.log" &
sleep $((seconds / 2 + 1))
stop KILL
wait || true
# The server's children see that it died, and end when they have nothing to do: until then a new one is refused.
for _ in $(seq 30); do
    if start; then break; fi
    sleep 1
done
[ -n "$server" ] || { tail -n 20 "$near/log" >&2; exit 1; }
balanced "after kill -9" "$before"
sql "select count(*) from pgbench_history" >"$near/count"
stop INT
pg pg_checksums --check -D "$data" | grep -q 'Bad checksums: *0' || { echo "postgres: bad checksums" >&2; exit 1; }
echo "postgres: ok, $(cat "$near/count") transactions"
