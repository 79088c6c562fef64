#!/usr/bin/env bash
# The suites that file systems are measured by, and real programs, on a staging tree: mounted by itself, and below a mounted
# context; what is about ACLs once more with `-o acl`. Prints a line for each and ends with the number that failed; README.md says what is expected.
#
# usage: run.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [SUITE…]
#        SUITE: pjdfstest acls fsx edges sqlite git copies locks mapped postgres build tables stress fio dbench, all by default
# FSTESTS_MOUNTS: staging context acl, all by default. FSTESTS_SCALE: how much longer than in a minute or two each, 1.
# FSTESTS_SEEDS: of fsx, four fixed and one random by default. FSTESTS_FSX: operations of each, 50,000; a million in `make fstests`.
#
# Leaves nothing behind (scripts/namespaces.sh).
set -eu
suite_files=$(dirname "$(realpath "$0")")
. "$suite_files/../../scripts/namespaces.sh"

datamon=$(realpath "${1:?usage: run.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [SUITE...]}")
tools=$(realpath "${2:?usage: run.sh PATH-OF-DATAMON PATH-OF-TEST-TOOLS [SUITE...]}")
shift 2
[ $# -gt 0 ] || set -- pjdfstest acls fsx edges sqlite git copies locks mapped postgres build tables stress fio dbench
if [ -z "${DATAMON_SCRATCH:-}" ]; then
    packages=()
    for suite in "$@"; do
        case $suite in
            stress) package=stress-ng ;;
            fio | dbench) package=$suite ;;
            *) continue ;;
        esac
        command -v "$package" >/dev/null || packages+=("$package")
    done
    if [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" -eq 0 ]; then
        echo "fstests: installing ${packages[*]}" >&2
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null
    fi
    enter_namespaces fstests "$0" "$datamon" "$tools" "$@"
fi

here=$DATAMON_SCRATCH
programs=$suite_files/programs
scale=${FSTESTS_SCALE:-1}
failures=0
inside_namespaces
export DATAMON_CONFIG_DIR=$here/config DATAMON_STATE_DIR=$here/state DATAMON_CACHE_DIR=$here/cache

say() { printf 'fstests: %s\n' "$*"; }
outcome() { # NAME SUMMARY: what the log of a suite that passed says of it
    say "$1: ok${2:+, $2}"
}
failed() { # NAME: the end of its log tells why
    failures=$((failures + 1))
    say "$1: FAILED"
    {
        grep -A 4 -E 'FAILED|panicked' "$here/log" | head -n 200 || true
        tail -n 40 "$here/log"
    } | sed 's/^/    /'
}
run() { # NAME COMMAND…: into the log, under a deadline
    local name=$1
    shift
    if timeout -s KILL $((600 * scale)) "$@" >"$here/log" 2>&1; then return 0; fi
    failed "$name"
    return 1
}
tool() { echo "$tools/$1"@*/bin/"$1"; }

run_pjdfstest() { # NAME DIR
    # By a short path: a socket's has at most 108 bytes.
    mount --bind "$2" /mnt/below
    run "$1" $(tool pjdfstest) -c "$suite_files/pjdfstest.toml" -p /mnt/below -s /mnt/other || { umount /mnt/below; return 0; }
    umount /mnt/below
    outcome "$1" "$(tail -n 3 "$here/log" | tr -s '\n ' ' ')"
}
run_acls() { # NAME DIR: the same words as on tmpfs
    local steps='"$1" "$2" >"$3" && "$1" "$4" >"$5" && diff "$3" "$5"'
    rm -rf /mnt/other/acls && mkdir -m 755 /mnt/other/acls
    run "$1" bash -c "$steps" bash "$programs/acls.sh" /mnt/other/acls "$here/local" "$2" "$here/ours" || return 0
    outcome "$1" "$(wc -l <"$here/ours") lines as on tmpfs"
}
run_fsx() { # NAME DIR: seeds that were never run before find more than those that were
    # fsx 0.3.2 keeps every mapping that it makes, and a process may have 65,530 of them: no more than so many operations each.
    local seed part most=250000 operations=${FSTESTS_FSX:-$((50000 * scale))} seeds=${FSTESTS_SEEDS:-1 2 3 7 $RANDOM}
    local parts=$(((operations + most - 1) / most))
    for seed in $seeds; do
        for ((part = 0; part < parts; part++)); do
            run "$1 seed $((seed + part * 100000))" $(tool fsx) -S $((seed + part * 100000)) -N $((operations / parts)) \
                -f "$suite_files/fsx.toml" -P "$here" "$2/$seed" || return 0
            rm -f "$2/$seed"
        done
    done
    outcome "$1" "seeds $seeds, $operations operations each"
}
run_edges() { run "$1" python3 "$programs/edges.py" "$2" && outcome "$1" || true; }
run_sqlite() { run "$1" python3 "$programs/sqlite.py" "$2" $((200 * scale)) && outcome "$1" "$(tr '\n' ' ' <"$here/log")" || true; }
run_git() { run "$1" "$programs/git.sh" "$2" $((200 * scale)) && outcome "$1" || true; }
run_copies() { run "$1" "$programs/copies.sh" "$2" /usr/share/doc && outcome "$1" "$(tail -n 1 "$here/log")" || true; }
run_locks() { run "$1" python3 "$programs/locks.py" "$2" $((1000 * scale)) && outcome "$1" || true; }
run_mapped() { run "$1" python3 "$programs/mapped.py" "$2" $((20 * scale)) && outcome "$1" || true; }
run_postgres() {
    run "$1" "$programs/postgres.sh" "$2" "$tools"/venv/lib/python3*/site-packages/pgserver/pginstall $((10 * scale)) || return 0
    outcome "$1" "$(tail -n 1 "$here/log")"
}
run_build() { run "$1" "$programs/build.sh" "$2" && outcome "$1" || true; }
run_tables() { run "$1" "$tools/venv/bin/python3" "$programs/tables.py" "$2" $((1000000 * scale)) && outcome "$1" "$(tail -n 1 "$here/log")" || true; }
run_stress() { # NAME DIR: stressors that this machine lacks end it with 3; what fails says so
    local status=0 found
    timeout -s KILL $((1200 * scale)) stress-ng --class filesystem --sequential 1 --timeout $((3 * scale))s --temp-path "$2" \
        --verify --skip-silent --metrics-brief --no-rand-seed >"$here/log" 2>&1 || status=$?
    found=$(grep -E 'fail: |failed: [1-9]' "$here/log" || true)
    grep -q 'run completed' "$here/log" || found="did not come to its end: $found"
    if { [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; } || [ -n "$found" ]; then
        printf '%s\n' "$found" >>"$here/log"
        failed "$1"
        return
    fi
    # What was stressed is still a tree that can be walked, read and removed.
    run "$1: the tree after" sh -c 'find "$1" -type f -exec cat {} + >/dev/null && rm -rf "$1"/* && [ -z "$(ls -A "$1")" ]' sh "$2" || return 0
    outcome "$1"
}
run_fio() { D=$2 run "$1" fio "$suite_files/fio-verify.job" && outcome "$1" "$(grep -c 'err= 0' "$here/log") jobs without an error" || true; }
run_dbench() { run "$1" dbench -D "$2" -t $((10 * scale)) 4 && outcome "$1" "$(grep Throughput "$here/log")" || true; }

mkdir -p "$here/mnt"
mount -t tmpfs none /mnt
mkdir /mnt/below /mnt/other
mount -t tmpfs none /mnt/other
"$datamon" context create prod --store "file://$here/store" >/dev/null
"$datamon" mount prod "$here/mnt"
mkdir "$here/mnt/census"
"$datamon" umount "$here/mnt" >/dev/null
for kind in ${FSTESTS_MOUNTS:-staging context acl}; do
    source=prod/census/staging below=$here/mnt options=rw,allow_other,dev,suid
    case $kind in
        context) source=prod below=$here/mnt/census/staging/sub ;;
        acl) options=$options,acl ;;
    esac
    "$datamon" mount "$source" "$here/mnt" -o "$options"
    mkdir -p "$below"
    for suite in "$@"; do
        # What is about ACLs wants them, and the others do not ask.
        case $kind,$suite in
            acl,pjdfstest | acl,acls) ;;
            acl,* | *,acls) continue ;;
        esac
        mkdir "$below/$suite"
        "run_$suite" "$suite, $kind" "$below/$suite"
        rm -rf "${below:?}/$suite"
    done
    "$datamon" umount "$here/mnt" >/dev/null
done
if [ "$failures" -gt 0 ]; then
    say "$failures failed"
    exit 1
fi
say "all passed"
