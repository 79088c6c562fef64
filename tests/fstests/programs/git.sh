#!/usr/bin/env bash
# git.sh DIR COMMITS: a repository with that many commits is made, cloned, packed, checked and cloned again.
set -eu
cd "$1"
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=Test GIT_AUTHOR_EMAIL=test@example.org
export GIT_COMMITTER_NAME=Test GIT_COMMITTER_EMAIL=test@example.org
git config --global init.defaultBranch main
git config --global gc.auto 0

git init -q work
for n in $(seq "$2"); do
    mkdir -p "work/dir-$((n % 7))"
    seq -f "line %.0f of $n" $((n % 40 * 10 + 1)) >"work/dir-$((n % 7))/file-$((n % 30))"
    [ $((n % 5)) -ne 0 ] || git -C work mv -k "dir-$((n % 7))/file-$((n % 30))" "dir-$((n % 7))/moved-$n"
    git -C work add -A
    git -C work commit -q -m "commit $n"
done
git -C work branch side HEAD~3
git -C work checkout -q side
echo side >work/side
git -C work add side
git -C work commit -q -m side
git -C work checkout -q main
git -C work merge -q --no-edit side
git clone -q --no-hardlinks work clone
git clone -q --local work linked
git -C work gc -q --aggressive --prune=now
git -C work repack -q -a -d -f
for tree in work clone linked; do
    git -C "$tree" fsck --full --strict --no-dangling
    [ -z "$(git -C "$tree" status --porcelain)" ] || { echo "git: $tree is not clean" >&2; exit 1; }
    [ "$(git -C "$tree" rev-list --count HEAD)" -eq $(($2 + 2)) ] || { echo "git: commits are missing in $tree" >&2; exit 1; }
done
rm -rf clone
git clone -q work clone
diff -r --exclude=.git work clone
echo "git: ok, $2 commits"
