#!/usr/bin/env bash
# copies.sh DIR TREE: TREE is packed by tar and copied by rsync and cp into DIR; each finds the other's copy the same.
set -eu
dir=$1 tree=$2
mkdir -p "$dir/rsync" "$dir/cp" "$dir/tar"
rsync -aHAX "$tree/" "$dir/rsync/"
again=$(rsync -aHAX --itemize-changes "$tree/" "$dir/rsync/")
[ -z "$again" ] || { printf 'copies: rsync copies again:\n%s\n' "$again" >&2; exit 1; }
again=$(rsync -aHAXn --checksum --delete --itemize-changes "$tree/" "$dir/rsync/")
[ -z "$again" ] || { printf 'copies: rsync finds differences:\n%s\n' "$again" >&2; exit 1; }
cp -a "$tree/." "$dir/cp/"
again=$(rsync -aHAXn --checksum --delete --itemize-changes "$dir/rsync/" "$dir/cp/")
[ -z "$again" ] || { printf 'copies: cp -a differs:\n%s\n' "$again" >&2; exit 1; }
# The format that keeps nanoseconds.
tar -C "$tree" --format=posix --sparse -cf "$dir/archive.tar" .
tar -C "$dir/rsync" --compare -f "$dir/archive.tar"
tar -C "$dir/tar" -xpf "$dir/archive.tar"
tar -C "$dir/rsync" --format=posix --sparse -cf - . | tar -C "$dir/tar" --compare -f -
again=$(rsync -aHAXn --checksum --delete --itemize-changes "$tree/" "$dir/tar/")
[ -z "$again" ] || { printf 'copies: tar differs:\n%s\n' "$again" >&2; exit 1; }
rm -rf "$dir/cp" "$dir/tar"
echo "copies: ok, $(find "$dir/rsync" | wc -l) entries"
