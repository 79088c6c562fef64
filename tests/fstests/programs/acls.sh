#!/usr/bin/env bash
# POSIX ACLs step by step: acls.sh DIR
#
# Prints what each step says, and what stat(1), ls(1), getfacl(1) and getfattr(1) show after it: the same words on every
# local file system with ACLs. DIR is empty, on the way to it others may search; to be run as root.
set -u
export LC_ALL=C
cd "$1" || exit 1
umask 022

say() { printf '\n# %s\n' "$*"; }
try() { # COMMAND…: what it says, and its exit status
    printf '$ %s\n' "$*"
    "$@" 2>&1
    echo "= $?"
}
as() { # UID GID GROUPS COMMAND…
    local uid=$1 gid=$2 groups=$3
    shift 3
    if [ "$groups" = - ]; then groups=--clear-groups; else groups=--groups=$groups; fi
    setpriv --reuid "$uid" --regid "$gid" "$groups" "$@"
}
lists() { # NAME…: all below them, in one order
    find "$@" ! -type l | LC_ALL=C sort | while read -r name; do getfacl -np "$name"; done
}
shown() { # NAME…: everything that is there to see
    local name
    for name in "$@"; do
        stat -c '%n %A %a %u:%g' "$name"
        # The mark of an ACL behind the mode.
        ls -ld "$name" | cut -c 1-11
        getfacl -np "$name" 2>&1
        getfattr -h -d -m - -e hex "$name" 2>&1 | grep = | sort
    done
}

say a mode and the mask of a list stay in step
touch f
try setfacl -m u:1000:rw f
shown f
for mode in 640 604 777 000 4711 u+w,g-x; do
    try chmod "$mode" f
    shown f
done
try setfacl -m m::r f
shown f
try setfacl -m g:7:rwx,u:1000:- f
shown f
try setfacl -n -m u:1001:rwx f
shown f
try setfacl -x u:1000,u:1001 f
shown f
try setfacl -b f
shown f
try chmod 600 f
shown f

say what a mode says as well is not kept
try setfacl -m u::rwx,g::rx,o::x f
shown f
try setfacl -m u:1:r,m::r f
try setfacl -x u:1 f
shown f
try setfacl -x m f
shown f

say set-group-id goes when somebody outside the group changes the list
for who in '0 0 -' '1234 1234 -' '1234 5678 -' '1234 1234 5678,9'; do
    for kind in file dir; do
        rm -rf s
        if [ $kind = dir ]; then mkdir s; else touch s; fi
        chown 1234:5678 s
        chmod 6775 s
        # shellcheck disable=SC2086
        try as $who setfacl -m u:9:r s
        shown s
        # shellcheck disable=SC2086
        try as $who setfacl -b s
        # shellcheck disable=SC2086
        [ $kind = dir ] && try as $who setfacl -d -m u:9:r s
        # shellcheck disable=SC2086
        try as $who chmod 2770 s
        shown s
        try chmod g-s s
        shown s
    done
done
chown 0:0 s
shown s

say what is made in a directory gets of its default list
mkdir d
try setfacl -d -m u:1000:rwx,g:7:rx,o::- d
shown d
for mask in 000 027 077; do
    umask $mask
    try touch d/file-$mask
    try mkdir d/dir-$mask
    try mkdir -m 2711 d/moded-$mask
    try mknod d/pipe-$mask p
    try mknod d/null-$mask c 1 3
    try ln -s nowhere d/link-$mask
    try python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('d/socket-$mask')"
    try python3 -c "import os; os.close(os.open('d/narrow-$mask', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o4640))"
    try python3 -c "import os; os.close(os.open('d/none-$mask', os.O_CREAT | os.O_RDWR, 0o000))"
    shown d/{file,dir,moded,pipe,null,socket,narrow,none}-$mask
    stat -c '%n %A' d/link-$mask
    try touch d/dir-$mask/deep
    shown d/dir-$mask/deep
done
umask 022
try chmod 2775 d
try chown 0:7 d
try mkdir d/in-group
try touch d/of-group
shown d d/in-group d/of-group
try as 1234 1234 - touch d/strangers
chmod o+wx d
try as 1234 1234 - touch d/strangers
try as 1234 1234 - mkdir d/strangers-dir
shown d/strangers d/strangers-dir
try setfacl -k d
shown d
umask 002
try touch d/after
shown d/after
umask 022

say a default list that a mode says as well leaves no list but itself
mkdir m
try setfacl -d -m u::rwx,g::rx,o::- m
umask 000
try touch m/file
try mkdir m/dir
umask 077
try touch m/file-2
umask 022
shown m m/file m/dir m/file-2

say lists are directories\' and files\' own
try setfacl -d -m u:1:r f
try setfacl -k f
ln -s f link
ln -s nowhere dangling
try setfacl -m u:1:r link
shown f
try setfacl -m u:1:r dangling
minimal=0x0200000001000600ffffffff04000400ffffffff20000400ffffffff
try setfattr -h -n system.posix_acl_access -v $minimal link
try getfattr -h -n system.posix_acl_access link
try setfacl -m u:1:r missing

say bytes that are no list
try setfattr -n system.posix_acl_access -v $minimal f
shown f
for bytes in 0x 0x02000000 0x0100000001000600ffffffff04000400ffffffff20000400ffffffff 0x02000000010006 \
    0x0200000004000400ffffffff01000600ffffffff20000400ffffffff 0x0200000001000600ffffffff04000400ffffffff \
    0x0200000001000600ffffffff0200060001000000 \
    0x0200000001000600ffffffff020006000100000004000400ffffffff20000400ffffffff \
    0x0200000001000e00ffffffff04000400ffffffff20000400ffffffff \
    0x0200000001000600ffffffff40000400ffffffff20000400ffffffff \
    0x0200000001000600ffffffff02000600ffffffff04000400ffffffff10000700ffffffff20000400ffffffff \
    0x0200000001000600ffffffff02000600020000000200040001000000020002000200000004000400ffffffff10000700ffffffff20000400ffffffff; do
    for kind in access default; do
        try setfattr -n system.posix_acl_$kind -v $bytes f
        try setfattr -n system.posix_acl_$kind -v $bytes m
    done
    shown f m
done
for kind in access default; do
    try setfattr -x system.posix_acl_$kind f
    try setfattr -x system.posix_acl_$kind f
    try setfattr -x system.posix_acl_$kind m
    try setfattr -x system.posix_acl_$kind m
done
shown f m

say lists decide
mkdir p
echo secret > p/secret
chmod 711 p
chmod 600 p/secret
look() {
    for who in '0 0 -' '1234 1234 -' '1235 1235 -' '1236 7 -' '1236 1236 7'; do
        # shellcheck disable=SC2086
        try as $who cat p/secret
        # shellcheck disable=SC2086
        try as $who sh -c 'echo more >> p/secret'
        # shellcheck disable=SC2086
        try as $who ls p
        # shellcheck disable=SC2086
        try as $who sh -c 'touch p/new && rm p/new'
        # shellcheck disable=SC2086
        try as $who test -x p/secret
    done
}
look
try setfacl -m u:1234:r,g:7:rw p/secret
look
try setfacl -m m::r p/secret
look
try chmod g= p/secret
look
try setfacl -m u:1234:rwx,g:7:x,o::- p
try setfacl -m u:1234:-,m::rwx,o::rw p/secret
look
try chown 1234:7 p/secret
look
try as 1235 1235 - setfacl -m u:1235:rw p/secret
try as 1235 1235 - setfacl -b p/secret
try as 1235 1235 - chmod 777 p/secret
try as 1234 1234 - setfacl -m u:1235:rw p/secret
look
shown p p/secret

say a list stays with its file, by whatever name
mkdir k
echo k > k/file
setfacl -m u:1000:rwx,g:7:r k/file
setfacl -d -m u:1000:rwx k
ln k/file k/link
try mv k/file renamed
shown renamed k/link
try setfacl -x g:7 k/link
shown renamed
echo more >> renamed
truncate -s 1 renamed
chown 5:6 renamed
shown renamed
try mv k elsewhere
shown elsewhere
touch elsewhere/new
shown elsewhere/new
cp renamed target
setfacl -m u:9:r target
mv renamed target
shown target

say copies
mkdir copies
setfacl -d -m g:11:rwx copies
try cp -a d m elsewhere target copies
try cp -p target copies/kept
try cp target copies/inherited
try rsync -aAX d elsewhere target copies/
mkdir by-rsync
try rsync -aAX d elsewhere target by-rsync/
try cp -a d by-cp
tar --acls -cf - d elsewhere target 2>/dev/null | { mkdir by-tar && tar --acls -xf - -C by-tar; } 2>/dev/null
lists copies by-rsync by-cp by-tar
getfacl -Rnp d > saved
try setfacl -Rb d
lists d
try setfacl --restore=saved
lists d
try setfacl -R -m u:3:rX,d:u:3:rX d
lists d
try setfacl -R --set u::rwX,g::rX,o::-,u:4:rwX d
lists d
