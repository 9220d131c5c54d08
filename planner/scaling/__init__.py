"""Scaling laws: forms, posteriors, hold-out errors, model averaging, isoFLOP minima and the forecast of a run's loss.

Runs come in as `points.Points`, whoever trained them. Front door: `model_averaging.fit_mixture`, then `forecast_loss`.
"""
