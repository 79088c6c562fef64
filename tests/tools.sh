#!/usr/bin/env bash
# Installs what the tests talk to, once, under target/test-tools: an S3 server from PyPI. Quiet when it is there.
set -eu
cd "$(dirname "$0")/.."
version=1.5.33
tools=${CARGO_TARGET_DIR:-target}/test-tools
[ -e "$tools/ministack-$version" ] && exit 0

rm -rf "$tools"
mkdir -p "$tools"
echo "tests: installing the S3 server ministack $version into $tools"
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install -q --disable-pip-version-check "ministack==$version"
touch "$tools/ministack-$version"
