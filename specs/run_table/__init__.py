"""Tables of runs that people already have, from any engine: read, checked, and brought to one unit.

Front doors: `read.read_table`, from a CSV, JSONL, JSON or Parquet file to a `RunTable`; `curves.read_curves`, to the
training curves of such runs.
"""
