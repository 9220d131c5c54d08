"""Scaling laws: forms, robust fits, hold-out errors, model averaging, and the forecast of a loss with its bands.

Evidence from the ledger (`ledger_evidence`) or a published law comes in; isoFLOP minima, constants with intervals and
the forecast of the target's loss curve come out. Front door: `planner.scaling.forecast`.
"""
