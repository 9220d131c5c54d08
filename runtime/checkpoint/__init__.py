"""Checkpoints: written atomically, verified by digest, read under any parallel layout; Hugging Face import and export.

Front door: `runtime.checkpoint.format` stages and commits them, `runtime.checkpoint.shards` reads and writes a rank's
part; a run is resumed from one in `runtime.train.resume`.
"""
