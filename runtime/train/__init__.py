"""Training a run: the loop, gradient accumulation, the loss-spike guard, resume, asynchronous checkpoints, metrics.

One process per rank. Front door: `runtime.train.loop.train`.
"""
