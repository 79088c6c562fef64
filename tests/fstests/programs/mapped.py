"""A writer through mmap: mapped.py DIR ROUNDS

One process stores into a shared mapping of a sparse file that grows; after each msync another process reads the same by
read(2). Holes are never claimed where something was stored, also before it was written back; the copy that cp makes of the
file while it is mapped is the same.
"""

import mmap
import os
import random
import subprocess
import sys

PAGE = mmap.PAGESIZE
STEP = 4 << 20


def main(directory, rounds):
    chance = random.Random(5)
    path, copy = os.path.join(directory, "mapped"), os.path.join(directory, "mapped.copy")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    model = bytearray()
    for n in range(rounds):
        model.extend(bytes(STEP))
        os.ftruncate(file, len(model))
        view = mmap.mmap(file, len(model))
        for _ in range(64):
            at = chance.randrange(len(model) - PAGE)
            data = chance.randbytes(chance.randrange(1, PAGE))
            view[at : at + len(data)] = data
            model[at : at + len(data)] = data
        # Nothing was written back yet: where there is no data there is none in the mapping either.
        at = 0
        while at < len(model):
            try:
                data = os.lseek(file, at, os.SEEK_DATA)
            except OSError:
                data = len(model)
            assert not any(model[at:data]), f"round {n}: {at}..{data} is no hole"
            if data == len(model):
                break
            at = os.lseek(file, data, os.SEEK_HOLE)
        subprocess.run(["cp", path, copy], check=True)
        assert open(copy, "rb").read() == model, f"round {n}: the copy is another"
        view.flush()
        seen = subprocess.run(["cat", path], check=True, stdout=subprocess.PIPE).stdout
        assert seen == model, f"round {n}: another process reads something else"
        view.close()
    os.close(file)
    print(f"mapped: ok, {len(model) >> 20} MiB in {rounds} rounds")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
