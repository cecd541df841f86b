#!/bin/sh
# Scores in a Parquet file, some of them NaN (an overflow, a damaged image), selected by a condition: everything that is
# not clearly confident, everything that is not exactly 1.
# Versions: pyarrow 26.0.1, duckdb 2.0.1, polars 2.1.0, numpy 2.4.6.
# Guess: the rows that a condition selects are the same whether the table is in memory or in a file; libraries may order
#   NaN differently, but each agrees with itself, whoever wrote the file.
# Behaviour: the file's statistics (least and greatest value) leave NaN out, and readers trust them. pyarrow drops the
#   NaN rows of not (x < 0.5) and of x != 1 where all other values lie on one side; the same filter on the same table in
#   memory keeps them. duckdb, to which NaN is the greatest number, loses them as well, and where the statistics promise
#   that all rows satisfy x <= 1 it gives the NaN too, as it does neither in memory nor from a file that it wrote. One
#   value on the other side in the same row group turns each answer round. polars is consistent. It hurts whoever looks
#   for the images on which a network failed: the query that finds them before they are saved finds none after.
# Output seen (rows of .1, NaN, .4 that satisfy not (x < .5), x > .5 and x <= 1; of 1, NaN, 1 that x != 1 selects):
#   pyarrow in memory 1, 0, 2, 1, from its file 0, 0, 2, 0; duckdb in memory 1, 1, 2, 1, from its own file the same,
#   from pyarrow's and polars' 0, 0, 3, 0; polars in memory and from each file 1, 1, 2, 1.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 pyarrow==26.0.1 duckdb==2.0.1 polars==2.1.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

nan = float("nan")
low = pa.table({"x": np.array([0.1, nan, 0.4])})
ones = pa.table({"x": np.array([1.0, nan, 1.0])})
# A table, the condition for pyarrow and polars (which share the operators), and the same in SQL.
QUERIES = [
    (low, "low", lambda x: ~(x < 0.5), "not (x < 0.5)"),
    (low, "low", lambda x: x > 0.5, "x > 0.5"),
    (low, "low", lambda x: x <= 1.0, "x <= 1"),
    (ones, "ones", lambda x: x != 1.0, "x <> 1"),
]
WRITERS = {
    "pyarrow": pq.write_table,
    "polars": lambda table, path: pl.from_arrow(table).write_parquet(path),
    "duckdb": lambda rows, path: duckdb.sql(f"copy (select * from rows) to '{path}'"),
}
for writer, write in WRITERS.items():
    for name, table in (("low", low), ("ones", ones)):
        write(table, f"{writer}-{name}.parquet")


def counted_by_duckdb(source, condition):
    return duckdb.sql(f"select count(*) from {source} where {condition}").fetchall()[0][0]


seen = {("pyarrow", "memory"): [table.filter(test(ds.field("x"))).num_rows for table, _, test, _ in QUERIES]}
seen["polars", "memory"] = [pl.from_arrow(table).filter(test(pl.col("x"))).height for table, _, test, _ in QUERIES]
seen["duckdb", "memory"] = [counted_by_duckdb(name, condition) for _, name, _, condition in QUERIES]
for writer in WRITERS:
    files = [(f"{writer}-{name}.parquet", test, condition) for _, name, test, condition in QUERIES]
    seen["pyarrow", writer] = [ds.dataset(file).to_table(filter=by(ds.field("x"))).num_rows for file, by, _ in files]
    seen["polars", writer] = [pl.scan_parquet(file).filter(by(pl.col("x"))).collect().height for file, by, _ in files]
    seen["duckdb", writer] = [counted_by_duckdb(f"'{file}'", condition) for file, _, condition in files]
for (reader, source), rows in sorted(seen.items()):
    print(f"{reader}, {'in memory' if source == 'memory' else 'file of ' + source}: {rows}")

mixed = pa.table({"x": np.array([0.1, nan, 0.9])})
pq.write_table(mixed, "mixed.parquet")
kept = ds.dataset("mixed.parquet").to_table(filter=~(ds.field("x") < 0.5)).num_rows
print("pyarrow, with .9 beside them, not (x < 0.5):", kept)

assert seen["pyarrow", "memory"] == [1, 0, 2, 1] and seen["duckdb", "memory"] == [1, 1, 2, 1], "other conditions"
assert all(seen["polars", source] == [1, 1, 2, 1] for source in ("memory", *WRITERS)), "polars differs"
assert seen["pyarrow", "pyarrow"] == seen["pyarrow", "polars"] == [0, 0, 2, 0], "pyarrow keeps NaN now"
assert seen["duckdb", "pyarrow"] == seen["duckdb", "polars"] == [0, 0, 3, 0], "duckdb does not trust statistics now"
assert seen["duckdb", "duckdb"] == seen["duckdb", "memory"] and kept == 2
PY
