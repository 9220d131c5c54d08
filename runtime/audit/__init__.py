"""Planned against actual: the verdict on a sealed forecast, checks of the records, likely causes of a miss, ledger.

Front door: `runtime.audit.verdict.audit_plan`.
"""
