#!/usr/bin/env bash
# The main job on a local store, shown as it happens: context, mount, cp, sync, ls, label, a second host, umount.
# usage: quickstart.sh PATH-OF-DATAMON | --check. Works in a scratch directory and removes it; touches nothing else.
set -euo pipefail

cannot() {
    echo "quickstart: $*" >&2
    exit 1
}
[ -e /dev/fuse ] || cannot "/dev/fuse: not there (as root: modprobe fuse; in a container: --device /dev/fuse)"
[ -r /dev/fuse ] && [ -w /dev/fuse ] || cannot "/dev/fuse: cannot be opened by $(id -un) (run as root, or chmod 666 it)"
if [ "$(id -u)" = 0 ]; then
    unshare -m true 2>/dev/null || cannot "root may not mount here (in a container: --cap-add SYS_ADMIN)"
else
    command -v fusermount3 >/dev/null || cannot "fusermount3: not found (as root: apt-get install fuse3)"
fi
[ "${1:-}" != --check ] || exit 0

datamon=$(realpath "${1:?usage: quickstart.sh PATH-OF-DATAMON}")
here=$(mktemp -d "${TMPDIR:-/tmp}/datamon-quickstart.XXXXXX")
export DATAMON_CONFIG_DIR=$here/config DATAMON_STATE_DIR=$here/state DATAMON_CACHE_DIR=$here/cache

cleanup() {
    for dir in "$here/mnt" "$here/other"; do
        if mountpoint -q "$dir"; then
            if [ "$(id -u)" = 0 ]; then umount -i "$dir"; else fusermount3 -u "$dir"; fi || true
        fi
    done
    rm -rf --one-file-system "$here"
}
trap cleanup EXIT

bold='' plain=''
[ -t 1 ] && bold=$'\033[1m' plain=$'\033[0m'
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
# Paths of this run in short.
short() {
    local line
    while IFS= read -r line; do
        line=${line//"$here"/"~"}
        printf '%s\n' "${line//"$datamon"/datamon}"
    done
}
run() {
    printf '$ %s\n' "$*" | short
    "$@" | short
}

mkdir -p "$here/mnt" "$here/other" "$here/data/tables"
printf 'region,people\nnorth,41\nsouth,59\n' > "$here/data/tables/people.csv"
head -c 3000000 /dev/urandom > "$here/data/image.bin"
ln -s tables/people.csv "$here/data/newest"

say "A context: one instance of datamon, here in a plain directory"
run "$datamon" context create demo --store "file://$here/store"

say "Mount it, and make a repo"
run "$datamon" mount demo "$here/mnt"
run mkdir "$here/mnt/census"

say "Fill its staging tree, and commit it with sync"
run cp -a "$here/data/." "$here/mnt/census/staging/"
run sync "$here/mnt/census/staging"
run ls -l "$here/mnt/census/labels/latest/"

say "Change something; commit again, with a message and a label"
run sh -c "echo west,12 >> '$here/mnt/census/staging/tables/people.csv'"
run "$datamon" commit -m "the west joined" -l v2 "$here/mnt/census/staging"
run ls "$here/mnt/census/bundles" "$here/mnt/census/labels"

say "Another host (a state directory of its own) sees the label; every byte is the same"
export DATAMON_STATE_DIR=$here/state-of-other
run "$datamon" mount demo/census/labels/v2 "$here/other"
run diff -r --no-dereference "$here/mnt/census/staging" "$here/other"
run cat "$here/other/tables/people.csv"

say "Unmount"
run "$datamon" umount "$here/other"
run "$datamon" umount "$here/mnt"

say "Done. Your own: datamon context create NAME --store s3://bucket/prefix; see README.md"
