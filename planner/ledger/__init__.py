"""What a person does with a ledger: list it, add the runs of a table, exclude a run and take it back in.

Front door: `cli.COMMANDS`, the command `isoplan ledger`.
"""
