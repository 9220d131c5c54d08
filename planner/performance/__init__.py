"""What a training step costs: FLOP, memory, communication and seconds of every parallel layout on a cluster.

Closed forms rank all layouts at once (`layout_search`), a pipeline simulator times the best. Front door:
`planner.performance.batch_and_layout` chooses a draft's batch and layout; the target run then takes the
fastest simulated one of `planner.performance.layout_search`.
"""
