"""sqlite under concurrent writers: sqlite.py DIR ROUNDS [FILE-PREFIX]

Four processes move amounts between accounts and append to a journal table, with a write-ahead log and with a rollback
journal; a fifth reads all the while. What is moved is never lost or made, and the database is whole at the end.
"""

import multiprocessing
import os
import random
import sqlite3
import sys

ACCOUNTS = 50
START = 1000
WRITERS = 4


def connect(path):
    return sqlite3.connect(path, timeout=120, isolation_level=None)


def write(path, seed, rounds):
    chance = random.Random(seed)
    base = connect(path)
    for n in range(rounds):
        base.execute("begin immediate")
        a, b = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randrange(100)
        base.execute("update account set amount = amount - ? where id = ?", (amount, a))
        base.execute("update account set amount = amount + ? where id = ?", (amount, b))
        base.execute("insert into move values (?, ?, ?)", (seed, n, chance.randbytes(chance.randrange(3000))))
        base.execute("rollback" if chance.random() < 0.1 else "commit")
    base.close()


def read(path, done):
    base = connect(path)
    while not done.is_set():
        (total,) = base.execute("select sum(amount) from account").fetchone()
        assert total == ACCOUNTS * START, f"a reader saw {total}"
    base.close()


def run(directory, rounds, mode, prefix):
    path = os.path.join(directory, f"{prefix}{mode}.sqlite")
    base = connect(path)
    (got,) = base.execute(f"pragma journal_mode = {mode}").fetchone()
    assert got == mode, f"journal_mode {mode}: got {got}"
    base.execute("create table account (id integer primary key, amount integer)")
    base.execute("create table move (writer integer, n integer, noise blob)")
    base.executemany("insert into account values (?, ?)", [(n, START) for n in range(ACCOUNTS)])
    base.close()
    done = multiprocessing.Event()
    reader = multiprocessing.Process(target=read, args=(path, done))
    writers = [multiprocessing.Process(target=write, args=(path, seed, rounds)) for seed in range(WRITERS)]
    for process in [reader, *writers]:
        process.start()
    for process in writers:
        process.join()
    done.set()
    reader.join()
    failed = [process.exitcode for process in [reader, *writers] if process.exitcode != 0]
    assert not failed, f"{mode}: processes failed: {failed}"
    base = connect(path)
    (verdict,) = base.execute("pragma integrity_check").fetchone()
    assert verdict == "ok", f"{mode}: integrity_check: {verdict}"
    (total,) = base.execute("select sum(amount) from account").fetchone()
    assert total == ACCOUNTS * START, f"{mode}: {total} in the end"
    (moves,) = base.execute("select count(*) from move").fetchone()
    base.close()
    print(f"sqlite {mode}: ok, {moves} of {WRITERS * rounds} moves committed")


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    directory, rounds, *prefix = sys.argv[1:]
    for mode in ["wal", "delete"]:
        run(directory, int(rounds), mode, prefix[0] if prefix else "")
