#!/usr/bin/env bash
# Installs the Debian packages that building datamon needs, and with --tests those of its tests. Quiet when all are present.
# Used by `make` and CI. Without root it prints the exact line to run and stops.
set -eu

# Where su(1) left a user's PATH to root, dpkg would miss its tools.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# g++, libclang-dev: rocksdb's C++ and its bindings. fuse3: mounts of ordinary users.
packages=(g++ libclang-dev make pkg-config fuse3 util-linux mount)
if [ "${1:-}" = --tests ]; then
    # systemd-container: a machine that boots (tests/suites/boot.rs). libglib2.0-bin: gio, as a desktop looks around.
    packages+=(
        procps e2fsprogs xfsprogs strace rsync attr acl libacl1-dev git python3 python3-venv
        libglib2.0-bin systemd systemd-container
    )
    # There are several of these, which do not like each other.
    command -v busybox >/dev/null || packages+=(busybox)
    command -v updatedb >/dev/null || packages+=(plocate)
fi

if ! command -v dpkg-query >/dev/null; then
    echo "install-deps: not a Debian; needed here by other names: ${packages[*]}" >&2
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install-deps: missing packages; run as root: apt-get install -y ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "install-deps: installing ${missing[*]}"
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "install-deps: apt-get failed (see above)" >&2
    exit 1
fi
