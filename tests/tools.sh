#!/usr/bin/env bash
# Installs what the tests talk to and are measured by, once, under target/test-tools: from PyPI an S3 server, PostgreSQL,
# DuckDB and pyarrow, from crates.io the file system suites pjdfstest and fsx. Quiet when they are there.
set -eu
cd "$(dirname "$0")/.."
wheels=(ministack==1.5.33 pgserver==0.1.4 pyarrow==26.0.1 duckdb==2.0.1)
suites=(pjdfstest@0.2.2 fsx@0.3.2)
tools=${CARGO_TARGET_DIR:-target}/test-tools
mkdir -p "$tools"

# A moved directory or a new Python leaves an environment that is there and does not work.
modules='import ministack, pgserver, pyarrow, duckdb'
if [ "$(cat "$tools/wheels" 2>/dev/null)" != "${wheels[*]}" ] || ! "$tools/venv/bin/python3" -c "$modules" 2>/dev/null; then
    # Debian's own has the venv module that install-deps.sh asks for; another in PATH need not have it.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    rm -rf "$tools/venv" "$tools/wheels"
    echo "tests: installing ${wheels[*]} into $tools"
    "$python" -m venv "$tools/venv"
    if ! "$tools/venv/bin/python3" -m pip install -q --disable-pip-version-check "${wheels[@]}"; then
        echo "tests: ${wheels[*]}: cannot be installed from PyPI (see above; PIP_INDEX_URL names a mirror)" >&2
        exit 1
    fi
    echo "${wheels[*]}" >"$tools/wheels"
fi

for suite in "${suites[@]}"; do
    [ -x "$tools/$suite/bin/${suite%@*}" ] && continue
    echo "tests: installing ${suite/@/ } into $tools"
    rm -rf "${tools:?}/${suite%@*}"@*
    # A build directory of its own: ours is made with other flags.
    if ! cargo install -q --locked --root "$tools/$suite" --target-dir "$tools/build" "$suite"; then
        echo "tests: ${suite/@/ }: cannot be installed from crates.io (see above)" >&2
        exit 1
    fi
    rm -rf "$tools/build"
done
