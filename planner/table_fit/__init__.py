"""From a table of finished runs to a law: profiles, best splits, forecasts, and a backtest on its own largest runs.

Front door: `analysis.analyse`; the command `isoplan fit` is `cli`.
"""
