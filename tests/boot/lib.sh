#!/bin/bash
# What each script begins with (tests/suites/boot.rs puts it there): it runs as root in a machine that has booted, says
# what it found, and shuts the machine down, also when it failed.
set -eEu
export AWS_EC2_METADATA_DISABLED=true
staging=/dmtest/dm/census/staging
trap '{ echo "FAILED: line $LINENO: $BASH_COMMAND"; journalctl -b --no-pager -n 80; } >&2' ERR
trap 'systemctl --no-block poweroff 2>/dev/null' EXIT
is() { # WHAT FOUND EXPECTED
    [ "$2" = "$3" ] && return 0
    echo "FAILED: $1: found '$2', not '$3'" >&2
    return 1
}
listed() { ls "$1" | tr '\n' ' '; }
bundles() { ls /dmtest/dm/census/bundles | wc -l; }
# By the kernel's table: a look at the place itself would mount it, or keep it.
mounted() { grep -c " $1 .* - fuse.datamon " /proc/self/mountinfo || true; }
daemon() { pgrep -f -- '--child .* /dmtest/dm$'; }
until_true() { # WHAT COMMAND…
    local what=$1 n
    shift
    for ((n = 0; n < 200; n++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    is "$what" "not within 20 s" "done"
}
journal() { journalctl --no-pager -q -o cat "$@"; }
