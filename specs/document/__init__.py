"""Documents in and out of files: parsed with line and column, validated, written whole or not at all.

Front door: `specs.document.files.load` reads a document of a type, `specs.document.write.write_yaml` writes one. What
is wrong with a file is a `DocumentError` of one line: `path:line:column: what is wrong; what to write`."""
