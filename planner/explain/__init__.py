"""Where a number of a plan comes from, and how two plans differ: `isoplan explain` and `isoplan diff`.

Rules are a table from a plan's fields to functions that recompute them; nothing is read but the sealed plan and the
catalog. Front door: `planner.explain.answer.explain`.
"""
