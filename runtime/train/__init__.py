"""Training a run: the loop, gradient accumulation, the loss-spike guard, resume, asynchronous checkpoints, metrics.

One process per rank. There is no watchdog: a hang ends by the process group's timeout (model/mesh.py), and stragglers
are looked for before a run, by the doctor (runtime/doctor/findings.py). Front door: `runtime.train.loop.train`.
"""
