"""The documents that isoplan reads and writes, as frozen types with units, sources and JSON Schema.

One file per kind of document (`budget`, `cluster`, `plan`, `run`, `record`, ...). `document/` loads, validates and
writes them, `run_table/` reads tables of runs from any engine, `report/` draws a plan as a page, `catalog/` holds
published laws, clusters and model families. Front door: `specs.document.files.load`.
"""
