"""Parquet and DuckDB: tables.py DIR ROWS

pyarrow writes a partitioned data set, DuckDB reads it, joins and copies it, a database file is written, checkpointed,
closed and opened again: the sums are those of the numbers that went in. Files are read through mmap, too.
"""

import os
import sys

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

PARTS = 7


def check(what, found, expected):
    if found != expected:
        sys.exit(f"tables: {what}: {found}, not {expected}")


def main(directory, rows):
    total = rows * (rows - 1) // 2
    table = pa.table(
        {
            "n": pa.array(range(rows), pa.int64()),
            "part": pa.array([n % PARTS for n in range(rows)], pa.int32()),
            "text": pa.array([f"row {n} " + "x" * (n % 50) for n in range(rows)]),
        }
    )
    single = os.path.join(directory, "single.parquet")
    pq.write_table(table, single, row_group_size=max(rows // 10, 1), compression="zstd")
    for mapped in (False, True):
        read = pq.read_table(single, memory_map=mapped)
        check(f"one file, mmap {mapped}", read.equals(table), True)
    parts = os.path.join(directory, "parts")
    ds.write_dataset(table, parts, format="parquet", partitioning=["part"], existing_data_behavior="error")
    found = ds.dataset(parts, partitioning=["part"])
    check("rows of the data set", found.count_rows(), rows)
    check("sum of the data set", pc.sum(found.to_table(columns=["n"])["n"]).as_py(), total)

    path = os.path.join(directory, "tables.duckdb")
    base = duckdb.connect(path)
    base.execute("set threads = 2")
    base.execute(f"create table t as select * from read_parquet('{single}')")
    base.execute(f"insert into t select n + {rows}, part, text from t")
    base.execute(f"update t set text = 'changed' where n % 3 = 0")
    base.execute("checkpoint")
    base.execute(f"delete from t where n >= {rows}")
    out = os.path.join(directory, "out")
    base.execute(f"copy (select * from t) to '{out}' (format parquet, partition_by (part))")
    base.close()
    base = duckdb.connect(path)
    check("the database, opened again", base.execute("select count(*), sum(n) from t").fetchone(), (rows, total))
    changed = base.execute("select count(*) from t where text = 'changed'").fetchone()[0]
    check("rows that were changed", changed, (rows + 2) // 3)
    joined = f"select count(*) from t join read_parquet('{out}/*/*.parquet') o using (n) where t.text = o.text"
    check("a join with the copy", base.execute(joined).fetchone()[0], rows)
    base.close()
    print(f"tables: ok, {rows} rows")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
