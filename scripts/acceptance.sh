#!/usr/bin/env bash
# By-hand-size trees through the main job, over a directory and over a real S3 server: /usr/share, the cargo registry's
# sources, a git repository, a Python environment. Each goes in with cp -a, is committed, is compared on a second host
# (rsync lists nothing), and goes in again: nothing new may be stored. Ends with a table; any difference is exit 1.
#
# usage: acceptance.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [TREE…]     TREE: share cargo git venv, all by default
# ACCEPTANCE_STORES: file s3, both by default.
#
# Leaves nothing behind (namespaces.sh).
set -eu
. "$(dirname "$(realpath "$0")")/namespaces.sh"

datamon=$(realpath "${1:?usage: acceptance.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [TREE...]}")
tools=$(realpath "${2:?usage: acceptance.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [TREE...]}")
shift 2
[ -n "${DATAMON_SCRATCH:-}" ] || enter_namespaces acceptance "$0" "$datamon" "$tools" "$@"

here=$DATAMON_SCRATCH
failures=0
unset DATAMON_CONFIG_DIR DATAMON_STATE_DIR DATAMON_CACHE_DIR
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
inside_namespaces

say() { printf 'acceptance: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; failures=$((failures + 1)); }
host() { # NAME COMMAND…: a call on the host NAME, with its own configuration and state
    local dir=$here/$1
    shift
    DATAMON_CONFIG_DIR=$dir/config DATAMON_STATE_DIR=$dir/state DATAMON_CACHE_DIR=$dir/cache "$@"
}
seconds() { # COMMAND…: how long it took, on stdout
    local start=$EPOCHREALTIME
    "$@" >&2 || return
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'
}
same() { # WHAT ORIGINAL COPY: rsync has nothing to do
    local listed
    listed=$(rsync -aHAXn --checksum --delete --itemize-changes "$2/" "$3/" 2>&1) || true
    [ -z "$listed" ] || fail "$1: $(wc -l <<<"$listed") differences, the first: $(head -n 1 <<<"$listed")"
}
# Objects under p/, of which ministack keeps one file each and its own notes beside it.
data_packs() { find "$store_files" -type f -path '*/p/*' ! -name '*.meta.json' | wc -l; }
requests() { sed -n 's/^requests: \([0-9]*\) read, \([0-9]*\) write, \([0-9]*\) list.*/\1+\2+\3/p' "$1/.datamon/status"; }

# ---- trees -------------------------------------------------------------------------------------------------------------

make_git() { # DIR: 500 commits over 300 files, in a pack, and one with loose objects, as at work
    git init -q -b main "$1"
    for n in $(seq 500); do
        printf 'commit refs/heads/main\ncommitter Test <test@example.org> %d +0000\n' $((1700000000 + n))
        printf 'data <<END\ncommit %d\nEND\n' "$n"
        printf 'M 100644 inline src/module-%d/file-%d.txt\ndata <<END\n' $((n % 20)) $((n % 300))
        seq -f "line %.0f of commit $n" $((n % 40 * 10 + 1))
        printf 'END\n\n'
    done | git -C "$1" fast-import --quiet
    git -C "$1" reset -q --hard main
    echo later >"$1/later.txt"
    git -C "$1" add later.txt
    git -C "$1" -c user.name=Test -c user.email=test@example.org commit -q -m later
}
check_git() { # DIR: as git sees it
    local git=(git -c safe.directory='*' --no-optional-locks -C "$1")
    "${git[@]}" fsck --full --strict --no-dangling 2>&1 || return 1
    [ "$("${git[@]}" rev-list --count HEAD)" = 501 ] || { echo "not 501 commits"; return 1; }
    [ -z "$("${git[@]}" status --porcelain)" ] || { echo "git status lists changes"; return 1; }
}
check_venv() { # DIR: the interpreter of the environment, its packages, and a script of it
    "$1/bin/python3" -c 'import sys; sys.exit(sys.prefix != sys.argv[1])' "$1" || { echo "not this environment"; return 1; }
    [ "$(echo '{"a": [1, 2]}' | "$1/bin/python3" "$1/bin/jp.py" 'a[1]')" = 2 ] || { echo "jp.py answered wrong"; return 1; }
}
prepare() { # TREE: sets `tree` to its directory, or fails with why it is skipped in `skipped`
    skipped=
    case $1 in
        share) tree=/usr/share ;;
        cargo)
            tree=$registry
            [ -d "$tree" ] || skipped="$tree: not there (CARGO_HOME names another)"
            ;;
        git)
            tree=$here/trees/git
            [ -d "$tree" ] || make_git "$tree"
            ;;
        venv)
            tree=$tools/venv
            [ -d "$tree" ] || skipped="$tree: not there (tests/tools.sh makes it)"
            ;;
        *)
            say "$1: no such tree (share cargo git venv)"
            exit 2
            ;;
    esac
    [ -z "$skipped" ]
}

# ---- the main job ------------------------------------------------------------------------------------------------------

main_job() { # KIND TREE: one tree through one store, and its line of the table
    local kind=$1 name=$2 mnt=$here/mnt other=$here/other files bytes copied committed packs again asked bundle said
    if ! prepare "$name"; then
        say "SKIPPED $name: $skipped"
        return
    fi
    files=$(find "$tree" -xdev | wc -l)
    bytes=$(find "$tree" -xdev -type f -printf '%s\n' | awk '{ s += $1 } END { printf "%.1f MiB", s / 1048576 }')
    packs=$(data_packs)
    host one "$datamon" mount prod "$mnt"
    mkdir "$mnt/$name"
    copied=$(seconds cp -a "$tree/." "$mnt/$name/staging/") || fail "$kind $name: cp -a"
    asked=$(($(requests "$mnt")))
    committed=$(seconds sync "$mnt/$name/staging") || fail "$kind $name: sync: $(grep last_error "$mnt/.datamon/status")"
    asked=$(($(requests "$mnt") - asked))
    packs=$(($(data_packs) - packs))
    bundle=$(ls "$mnt/$name/bundles")

    host two "$datamon" mount "prod/$name/bundles/$bundle" "$other"
    same "$kind $name" "$tree" "$other"
    if [ "$(type -t "check_$name")" = function ]; then
        said=$("check_$name" "$other") || fail "$kind $name on the second host: $(tail -n 1 <<<"$said")"
    fi
    host two "$datamon" umount "$other"

    again=$(data_packs)
    cp -a "$tree/." "$mnt/$name/staging/" || fail "$kind $name: cp -a over itself"
    sync "$mnt/$name/staging" || fail "$kind $name: the second sync"
    again=$(($(data_packs) - again))
    [ "$again" = 0 ] || fail "$kind $name: copied in again, $again new data packs"
    same "$kind $name, committed again" "$tree" "$mnt/$name/labels/latest"
    host one "$datamon" umount "$mnt" >&2
    say "$kind $name: done"
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$kind" "$name" "$files" "$bytes" "$copied" "$committed" "$packs" "$asked" "$again" >>"$here/table"
}

start_s3() {
    local port
    port=$("$tools/venv/bin/python3" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
    mkdir "$here/server"
    BIND_HOST=127.0.0.1 SERVICES=s3 GATEWAY_PORT=$port S3_PERSIST=1 S3_DATA_DIR=$here/server \
        "$tools/venv/bin/python3" -m ministack >"$here/server.log" 2>&1 &
    local create='import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method="PUT"))'
    for _ in $(seq 100); do
        "$tools/venv/bin/python3" -c "$create" "http://127.0.0.1:$port/bucket" 2>/dev/null && break
        sleep 0.1
    done
    options=(--option "endpoint=http://127.0.0.1:$port" --option allow_http=true --option region=us-east-1)
}

[ $# -gt 0 ] || set -- share cargo git venv
mkdir -p "$here/trees" "$here/mnt" "$here/other"
printf 'store\ttree\tfiles\tbytes\tcopy-in s\tcommit s\tdata packs\trequests\tpacks again\n' >"$here/table"
for kind in ${ACCEPTANCE_STORES:-file s3}; do
    options=()
    if [ "$kind" = file ]; then
        url=file://$here/store store_files=$here/store
    else
        start_s3
        url=s3://bucket/prefix store_files=$here/server
    fi
    rm -rf "$here/one" "$here/two"
    host one "$datamon" context create prod --store "$url" "${options[@]}" >/dev/null
    host two "$datamon" context add "$url" "${options[@]}" >/dev/null
    for name in "$@"; do main_job "$kind" "$name"; done
done
awk -F'\t' '{ printf "%-5s  %-6s %8s %12s %10s %9s %11s %9s %12s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9 }' "$here/table"
if [ "$failures" -gt 0 ]; then
    say "$failures failed"
    exit 1
fi
say "every tree came back the same"
