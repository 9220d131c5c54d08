"""Tables in Parquet, read by pyarrow, which is imported only here."""

from pathlib import Path

from specs.document.parse import DocumentError, Place, show
from specs.humanize import first_line
from specs.run_table.grid import Cell, Grid, Scope, too_many


def read_parquet(path: Path, data: bytes, scope: Scope) -> Grid:
    """The table in the bytes of a Parquet file; fields of a struct are joined by dots. A row's line is its number."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        what = "Parquet is read by pyarrow, which is not installed"
        write = "run pip install 'isoplan[parquet]', or save the table as CSV"
        raise DocumentError(path, 1, 1, what, write) from None
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        fits = file.metadata.num_rows <= scope.most_rows
        table = file.read() if fits else file.schema_arrow.empty_table()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = f"this is not a Parquet file that can be read ({first_line(error)})"
        raise DocumentError(path, 1, 1, what, "write the file again, or save the table as CSV") from None
    if not fits:
        raise too_many(path, scope)
    while any(pyarrow.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    if table.num_rows == 0:
        raise DocumentError(path, 1, 1, f"the file has no {scope.row}", f"write a row for each {scope.row}")
    names = list(table.column_names)
    for at, name in enumerate(names):
        if name in names[:at]:
            what = f"the column {show(name)} appears twice"
            raise DocumentError(path, 1, at + 1, what, "rename or remove one of them")

    def place(row: int | None, column: str) -> Place:
        return (1 if row is None else row + 1), (names.index(column) + 1 if column in names else 1)

    unread: list[Cell] = [None] * table.num_rows
    columns = {
        name: table.column(at).to_pylist() if scope.wanted(name) else unread for at, name in enumerate(names)
    }
    return Grid(path, columns, list(range(1, table.num_rows + 1)), place)
