"""Locks between processes: locks.py DIR ROUNDS

Eight processes count in one file, each time under a lock: flock(2), a POSIX lock of the whole file, and POSIX locks of one
byte each. No count is lost, a lock that is held is refused to who does not wait, and a close drops a process's POSIX locks.
"""

import fcntl
import os
import struct
import sys

PROCESSES = 8
CELLS = 4


def count(path, rounds, kind, number):
    out = os.open(path, os.O_RDWR)
    for n in range(rounds):
        cell = (number + n) % CELLS if kind == "bytes" else 0
        if kind == "flock":
            fcntl.flock(out, fcntl.LOCK_EX)
        else:
            length, start = (8, cell * 8) if kind == "bytes" else (0, 0)
            fcntl.lockf(out, fcntl.LOCK_EX, length, start)
        (value,) = struct.unpack("<Q", os.pread(out, 8, cell * 8))
        os.pwrite(out, struct.pack("<Q", value + 1), cell * 8)
        if kind == "flock":
            fcntl.flock(out, fcntl.LOCK_UN)
        else:
            fcntl.lockf(out, fcntl.LOCK_UN, length, start)
    os.close(out)


def in_processes(what):
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            try:
                what(number)
                os._exit(0)
            except BaseException as why:
                print(why, file=sys.stderr)
                os._exit(1)
        children.append(child)
    failed = [status for child in children if (status := os.waitpid(child, 0)[1]) != 0]
    assert not failed, f"processes failed: {failed}"


def is_free(path):
    """Whether another process gets the POSIX lock at once."""
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main(directory, rounds):
    for kind in ["flock", "posix", "bytes"]:
        path = os.path.join(directory, f"lock-{kind}")
        with open(path, "wb") as out:
            out.write(bytes(8 * CELLS))
        in_processes(lambda number: count(path, rounds, kind, number))
        with open(path, "rb") as file:
            total = sum(struct.unpack(f"<{CELLS}Q", file.read()))
        assert total == PROCESSES * rounds, f"{kind}: {total} of {PROCESSES * rounds} counts"
        print(f"locks {kind}: ok, {total} counts")
    path = os.path.join(directory, "lock-posix")
    held = os.open(path, os.O_RDWR)
    fcntl.lockf(held, fcntl.LOCK_EX)
    assert not is_free(path), "a lock that is held was given to another"
    os.close(os.open(path, os.O_RDONLY))
    assert is_free(path), "a close did not drop the process's locks"
    os.close(held)
    print("locks at close: ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
