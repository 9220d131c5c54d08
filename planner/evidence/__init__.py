"""What the ledger's runs say: which of them are evidence, their laws, the allocation, and the target's forecast.

Front door: `ledger_evidence.read_evidence`, then `forecast.fit_ledger` and `forecast.from_ledger`.
"""
