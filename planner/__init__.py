"""From a budget and evidence to a sealed plan: arithmetic only, no torch, imports `specs` alone.

`scaling/` fits and extrapolates scaling laws, `performance/` counts the bytes and seconds of a training step,
`design/` chooses model shapes, pilots, batch and layout, `explain/` answers where a number of a plan comes from. Front
door: `planner.plan.make_plan`; the verb is `planner.cli`.
"""
