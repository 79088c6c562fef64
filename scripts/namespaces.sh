# Sourced by scripts that mount: runs them again in mount and process namespaces of their own, with a scratch directory
# below TMPDIR. When they end, so have their mounts and daemons, and the directory is removed: nothing is left behind.

# enter_namespaces NAME SCRIPT ARGUMENT…: the outer half, which does not return. The inner one finds its directory in
# DATAMON_SCRATCH.
enter_namespaces() {
    local name=$1
    shift
    if [ "$(id -u)" -ne 0 ]; then
        echo "$name: mounts in a namespace of its own need root (sudo make $name)" >&2
        exit 1
    fi
    DATAMON_SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/datamon-$name.XXXXXX")
    export DATAMON_SCRATCH
    # Other users work in some of the mounts.
    chmod 755 "$DATAMON_SCRATCH"
    # What is left when the namespaces have ended is files of ours.
    trap 'rm -rf --one-file-system "$DATAMON_SCRATCH"' EXIT
    trap 'exit 130' INT TERM
    unshare -m --propagation private --pid --fork --kill-child --mount-proc "$@"
    exit
}

# inside_namespaces: what the inner half begins with.
inside_namespaces() {
    # As the first process of its namespace it would not hear these otherwise.
    trap 'exit 130' INT TERM
    # umount(8)'s table of the host is none of our business.
    mkdir -p /run/mount && mount -t tmpfs none /run/mount
    # cargo is the user's, in whatever home.
    export CARGO_HOME=${CARGO_HOME:-${HOME:-}/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-${HOME:-}/.rustup}
    export HOME=$DATAMON_SCRATCH PYTHONDONTWRITEBYTECODE=1 AWS_EC2_METADATA_DISABLED=true
}
