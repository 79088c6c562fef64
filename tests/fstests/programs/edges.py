"""What a local file system does at the edges: edges.py DIR

Each function is one promise of docs/semantics.md; run as root, in a directory that other users may reach.
"""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time

MIB = 1 << 20
NOBODY = 65534


def refused(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except OSError as why:
        return why.errno
    return None


def as_user(what):
    """Runs `what` in a process of an ordinary user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            what()
            os._exit(0)
        except BaseException as why:
            print(why, file=sys.stderr)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the user's part failed"


def write(name, data, mode=0o644):
    with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
        out.write(data)


def regions(name):
    """The data of a file, as (start, end)."""
    file = os.open(name, os.O_RDONLY)
    size, at, found = os.fstat(file).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as why:
            assert why.errno == errno.ENXIO
            break
        at = os.lseek(file, start, os.SEEK_HOLE)
        found.append((start, at))
    os.close(file)
    return found


def directories_are_counted():
    links = lambda name: os.stat(name).st_nlink
    os.makedirs("a/b/c")
    os.mkdir("d")
    assert (links("a"), links("a/b"), links("d")) == (3, 3, 2)
    os.rename("a/b", "d/b")
    assert (links("a"), links("d"), links("d/b")) == (2, 3, 3)
    os.mkdir("a/b")
    os.rmdir("d/b/c")
    os.rename("a/b", "d/b")
    assert (links("a"), links("d"), links("d/b")) == (2, 3, 2), "over an empty directory"
    write("d/file", b"")
    assert links("d") == 3
    os.rmdir("d/b")
    assert links("d") == 2


def a_directory_lists_itself_and_its_parent():
    listed = subprocess.run(["ls", "-a"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert listed[:2] == [".", ".."], listed
    for n in range(3000):
        write(f"file-{n}", b"")
    listed = subprocess.run(["ls", "-aU"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert len(listed) == len(set(listed)) == 3002, len(listed)


def o_trunc_cuts_also_for_who_only_reads():
    write("cut", b"some")
    file = os.open("cut", os.O_RDONLY | os.O_TRUNC)
    assert os.fstat(file).st_size == 0 and os.read(file, 9) == b""
    os.close(file)
    write("log", b"before")
    file = os.open("log", os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    os.pwrite(file, b"one", 100)
    os.write(file, b"two")
    os.close(file)
    assert open("log", "rb").read() == b"onetwo"


def set_user_id_is_taken_away():
    mode = lambda name: stat.S_IMODE(os.stat(name).st_mode)
    os.chmod(".", 0o777)

    def fresh(name):
        write(name, b"#!/bin/sh\n")
        os.chown(name, NOBODY, NOBODY)
        os.chmod(name, 0o6777)
        assert mode(name) == 0o6777

    def extend():
        with open("written", "ab") as out:
            out.write(b"x")

    fresh("owned")
    os.chown("owned", 0, -1)
    assert mode("owned") == 0o777, "a change of owner, root's too"
    for name, what in [
        ("written", extend),
        ("shortened", lambda: os.truncate("shortened", 1)),
        ("opened", lambda: os.close(os.open("opened", os.O_WRONLY | os.O_TRUNC))),
        ("allocated", lambda: os.posix_fallocate(os.open("allocated", os.O_WRONLY), 0, 99)),
    ]:
        fresh(name)
        as_user(what)
        assert mode(name) == 0o777, f"{name}: {mode(name):o}"
    fresh("kept")
    with open("kept", "ab") as out:
        out.write(b"x")
    assert mode("kept") == 0o6777, "root's writes take nothing away"


def what_was_removed_is_there_for_who_holds_it():
    os.mkdir("dir")
    directory = os.open("dir", os.O_RDONLY)
    os.rmdir("dir")
    found = os.fstat(directory)
    assert stat.S_ISDIR(found.st_mode) and found.st_nlink == 0, found
    assert refused(os.open, "new", os.O_WRONLY | os.O_CREAT, dir_fd=directory) == errno.ENOENT
    write("held", b"held")
    held = os.open("held", os.O_PATH)
    os.unlink("held")
    found = os.fstat(held)
    assert found.st_size == 4 and found.st_nlink == 0, found
    through = f"/proc/self/fd/{held}"
    os.setxattr(through, "user.a", b"1")
    os.setxattr(through, "user.b", b"2")
    assert refused(os.setxattr, through, "user.b", b"3", os.XATTR_CREATE) == errno.EEXIST
    os.removexattr(through, "user.a")
    assert os.listxattr(through) == ["user.b"] and os.getxattr(through, "user.b") == b"2"
    os.chmod(through, 0o604)
    os.utime(through, (5, 7))
    found = os.fstat(held)
    assert found.st_mode & 0o7777 == 0o604 and found.st_mtime == 7 and found.st_nlink == 0, found
    with open(through, "rb") as file:
        assert file.read() == b"held" and os.getxattr(file.fileno(), "user.b") == b"2"
    for name in ["small", "large"]:
        data = os.urandom(100 if name == "small" else 3 * MIB)
        write(name, data)
        file = os.open(name, os.O_RDWR)
        os.unlink(name)
        assert os.pread(file, len(data) + 1, 0) == data
        os.pwrite(file, b"more", len(data))
        os.ftruncate(file, len(data) + 2)
        os.fchmod(file, 0o600)
        assert os.pread(file, len(data) + 9, 0) == data + b"mo" and os.fstat(file).st_nlink == 0
        assert os.open(f"/proc/self/fd/{file}", os.O_RDONLY) > 0, "it may be opened again"
        os.close(file)


def a_name_that_is_replaced_is_never_missing():
    write("name", b"0" * 100)
    end = time.monotonic() + 3
    seen, stale = [], []

    def look():
        count = 0
        while time.monotonic() < end:
            try:
                with open("name", "rb") as file:
                    data = file.read()
            except OSError as error:
                # Known (docs/semantics.md): replaced twice between the kernel's two looks at the name and its open.
                if error.errno != errno.ESTALE or error.filename != "name":
                    raise
                stale.append(count)
                continue
            assert len(data) == 100 and len(set(data)) == 1, data
            count += 1
        seen.append(count)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    n = 0
    while time.monotonic() < end:
        n += 1
        write("next", str(n % 10).encode() * 100)
        os.rename("next", "name")
    for reader in readers:
        reader.join()
    assert len(seen) == 3, "a reader failed"
    assert len(stale) * 100 <= sum(seen), f"{len(stale)} stale of {sum(seen)}"


def holes_are_found_and_take_no_blocks():
    file = os.open("sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(file, b"x" * 4096, 8 * MIB)
    os.ftruncate(file, 64 * MIB)
    assert regions("sparse") == [(8 * MIB, 8 * MIB + 4096)], regions("sparse")
    assert 8 <= os.stat("sparse").st_blocks < 1000, os.stat("sparse").st_blocks
    for whence in [os.SEEK_DATA, os.SEEK_HOLE]:
        assert refused(os.lseek, file, 64 * MIB, whence) == errno.ENXIO
    assert os.lseek(file, 63 * MIB, os.SEEK_HOLE) == 63 * MIB
    os.close(file)
    subprocess.run(["cp", "sparse", "copy"], check=True)
    assert regions("copy") == regions("sparse") and os.stat("copy").st_blocks < 1000
    subprocess.run(["cmp", "sparse", "copy"], check=True)
    write("zeros", b"")
    os.truncate("zeros", 1 << 40)
    assert regions("zeros") == [] and os.stat("zeros").st_blocks <= 1
    subprocess.run(["fallocate", "--punch-hole", "-o", "0", "-l", str(1 << 40), "zeros"], check=True)
    assert os.stat("zeros").st_blocks <= 1 and os.stat("zeros").st_size == 1 << 40
    os.truncate("zeros", 0)
    write("full", os.urandom(3 * MIB))
    assert regions("full") == [(0, 3 * MIB)] and os.stat("full").st_blocks == 3 * MIB // 512
    write("tiny", b"tiny")
    assert regions("tiny") == [(0, 4)] and 0 < os.stat("tiny").st_blocks <= 8


def room_that_is_not_there_is_refused():
    kind = subprocess.run(["stat", "-f", "-c", "%T", "."], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "fuse" in kind, f"not on {kind.strip()}: it would give all that it has"
    write("much", b"x")
    file = os.open("much", os.O_RDWR)
    assert refused(os.posix_fallocate, file, 0, 1 << 42) == errno.ENOSPC
    assert os.fstat(file).st_size == 1
    os.posix_fallocate(file, 10, 10)
    assert os.fstat(file).st_size == 20
    os.close(file)


def limits_are_refused_by_name():
    name = "n" * 255
    write(name, b"x")
    assert refused(os.open, "n" * 256, os.O_WRONLY | os.O_CREAT) == errno.ENAMETOOLONG
    os.symlink("t" * 4095, "long")
    assert os.readlink("long") == "t" * 4095 and os.lstat("long").st_size == 4095
    file = os.open("large", os.O_RDWR | os.O_CREAT)
    assert refused(os.ftruncate, file, 1 << 60) == errno.EFBIG
    assert refused(os.pwrite, file, b"x", 1 << 60) == errno.EFBIG
    assert os.fstat(file).st_size == 0
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        outcome = (os.pwrite(file, b"x" * 2000, 0), refused(os.ftruncate, file, 1001), refused(os.pwrite, file, b"x", 1000))
        os._exit(0 if outcome == (1000, errno.EFBIG, errno.EFBIG) else 1)
    assert os.waitpid(child, 0)[1] == 0, "RLIMIT_FSIZE"
    os.close(file)


def a_mode_without_write_is_for_the_next_open():
    os.chmod(".", 0o777)

    def make():
        file = os.open("closed", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
        os.write(file, b"written")
        os.close(file)
        assert refused(os.open, "closed", os.O_WRONLY) == errno.EACCES
        file = os.open("nothing", os.O_WRONLY | os.O_CREAT, 0)
        os.write(file, b"written")
        os.close(file)
        assert refused(os.open, "nothing", os.O_RDONLY) == errno.EACCES

    as_user(make)
    assert open("closed").read() == open("nothing").read() == "written"


def times_change_when_they_have_to():
    times = lambda name: os.stat(name, follow_symlinks=False)

    def changed(name, what, *of):
        before = times(name)
        time.sleep(0.01)
        what()
        after = times(name)
        found = {key for key in ["st_mtime_ns", "st_ctime_ns"] if getattr(before, key) != getattr(after, key)}
        assert found == {f"st_{time}_ns" for time in of}, f"{name}: {found}, not {of}"

    write("f", b"x" * 100)
    os.mkdir("d")
    write("d/f", b"x")
    changed("f", lambda: write("f", b"x"), "mtime", "ctime")
    changed("f", lambda: os.truncate("f", 1), "mtime", "ctime")
    changed("f", lambda: os.chmod("f", 0o600), "ctime")
    changed("f", lambda: os.link("f", "g"), "ctime")
    changed("f", lambda: os.unlink("g"), "ctime")
    changed("f", lambda: os.rename("f", "h") or os.rename("h", "f"), "ctime")
    changed("f", lambda: os.setxattr("f", "user.a", b"b"), "ctime")
    changed("f", lambda: open("f").read())
    changed("d", lambda: os.rename("d/f", "d/g"), "mtime", "ctime")
    changed("d", lambda: os.unlink("d/g"), "mtime", "ctime")
    changed("d", lambda: os.mkdir("d/d"), "mtime", "ctime")
    os.utime("f", ns=(7, 8))
    assert (times("f").st_atime_ns, times("f").st_mtime_ns) == (7, 8)
    # touch -a and -m leave the other time alone (UTIME_OMIT) and take the clock for theirs (UTIME_NOW).
    subprocess.run(["touch", "-a", "f"], check=True)
    assert times("f").st_mtime_ns == 8 and abs(times("f").st_atime - time.time()) < 60
    os.utime("f", ns=(7, 8))
    subprocess.run(["touch", "-m", "f"], check=True)
    assert times("f").st_atime_ns == 7 and abs(times("f").st_mtime - time.time()) < 60
    os.symlink("nowhere", "l")
    os.utime("l", ns=(1, 2), follow_symlinks=False)
    assert times("l").st_mtime_ns == 2


def a_sticky_directory_protects_its_names():
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    write("sticky/root", b"x")
    write("mine", b"x")
    os.chmod(".", 0o777)

    def user():
        assert refused(os.unlink, "sticky/root") in (errno.EPERM, errno.EACCES)
        assert refused(os.rename, "sticky/root", "sticky/other") in (errno.EPERM, errno.EACCES)
        write("sticky/user", b"x")
        assert refused(os.rename, "sticky/user", "sticky/root") in (errno.EPERM, errno.EACCES)
        os.unlink("sticky/user")

    as_user(user)


def names_change_places():
    os.mkdir("left")
    os.mkdir("right")
    os.mkdir("left/x")
    write("right/y", b"y")
    before = os.stat("right/y").st_ctime_ns
    time.sleep(0.01)
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    at, exchange = -100, 2
    assert libc.renameat2(at, b"left/x", at, b"right/y", exchange) == 0, os.strerror(ctypes.get_errno())
    assert open("left/x").read() == "y" and os.path.isdir("right/y")
    assert (os.stat("left").st_nlink, os.stat("right").st_nlink) == (2, 3)
    assert os.stat("left/x").st_ctime_ns > before


PROMISES = [value for name, value in list(globals().items()) if callable(value) and value.__module__ == "__main__"]
HELPERS = {"refused", "as_user", "write", "regions"}

if __name__ == "__main__":
    base, failed = os.path.abspath(sys.argv[1]), 0
    for promise in PROMISES:
        if promise.__name__ in HELPERS or (sys.argv[2:] and promise.__name__ not in sys.argv[2:]):
            continue
        place = os.path.join(base, promise.__name__)
        os.mkdir(place)
        os.chdir(place)
        try:
            promise()
            print(f"{promise.__name__}: ok")
        except BaseException as why:
            import traceback

            failed += 1
            print(f"{promise.__name__}: FAILED: {why!r}\n{traceback.format_exc()}")
    sys.exit(failed > 0)
