#!/usr/bin/env bash
# Installs what the tests talk to, once, under target/test-tools: an S3 server from PyPI. Quiet when it is there.
set -eu
cd "$(dirname "$0")/.."
version=1.5.33
tools=${CARGO_TARGET_DIR:-target}/test-tools
# A moved directory or a new Python leaves an environment that is there and does not work.
[ -e "$tools/ministack-$version" ] && "$tools/venv/bin/python3" -c 'import ministack' 2>/dev/null && exit 0

# Debian's own has the venv module that install-deps.sh asks for; another in PATH need not have it.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
rm -rf "$tools"
mkdir -p "$tools"
echo "tests: installing the S3 server ministack $version into $tools"
"$python" -m venv "$tools/venv"
if ! "$tools/venv/bin/python3" -m pip install -q --disable-pip-version-check "ministack==$version"; then
    echo "tests: ministack $version: cannot be installed from PyPI (see above; PIP_INDEX_URL names a mirror)" >&2
    exit 1
fi
touch "$tools/ministack-$version"
