"""From the bytes of a file to a `Grid` of its cells, by format: what a table looks like, and not yet what it means."""
