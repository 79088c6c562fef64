#!/usr/bin/env bash
# build.sh DIR: a small workspace with a library, a program, a build script and tests is built by cargo, without a network, in
# DIR; nothing is built twice, a change is seen, and what was built runs from there.
set -eu
cd "$1"
export CARGO_TARGET_DIR=$PWD/target CARGO_NET_OFFLINE=true
# The suite that runs this may itself be run by cargo.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_MANIFEST_DIR || true
mkdir -p app/src part/src
cat >Cargo.toml <<'T'
[workspace]
members = ["app", "part"]
resolver = "2"
T
cat >app/Cargo.toml <<'T'
[package]
name = "app"
version = "0.1.0"
edition = "2021"
build = "build.rs"
[dependencies]
part = { path = "../part" }
T
cat >part/Cargo.toml <<'T'
[package]
name = "part"
version = "0.1.0"
edition = "2021"
T
cat >app/build.rs <<'T'
fn main() {
    let dir = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{dir}/made.rs"), "pub const MADE: u32 = 40;").unwrap();
    println!("cargo:rerun-if-changed=build.rs");
}
T
cat >app/src/main.rs <<'T'
include!(concat!(env!("OUT_DIR"), "/made.rs"));
fn main() {
    println!("{}", part::more(MADE));
}
T
for n in $(seq 30); do
    echo "pub fn f$n(x: u32) -> u32 { x.wrapping_mul($n) }" >"part/src/m$n.rs"
    echo "pub mod m$n;"
done >part/src/lib.rs
cat >>part/src/lib.rs <<'T'
pub fn more(n: u32) -> u32 {
    n + 2
}
#[test]
fn it_adds() {
    assert_eq!(more(1), 3);
}
T
expect() { [ "$1" = "$2" ] || { echo "build: $3: $1, not $2" >&2; exit 1; }; }
cargo build -q --offline
expect "$(target/debug/app)" 42 "the program says"
expect "$(cargo build --offline 2>&1 | grep -c Compiling || true)" 0 "built again without a change"
sed -i 's/n + 2/n + 3/; s/more(1), 3/more(1), 4/' part/src/lib.rs
expect "$(cargo build --offline 2>&1 | grep -c Compiling || true)" 2 "built again after a change"
expect "$(target/debug/app)" 43 "the program says after the change"
cargo test -q --offline >test.log 2>&1 || { cat test.log >&2; exit 1; }
cargo build -q --offline --release
expect "$(target/release/app)" 43 "the optimised program says"
echo "build: ok"
