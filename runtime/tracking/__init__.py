"""Experiment trackers: what a run folder has that a tracker has not, sent once.

Front door: `sync` sends a run; `local_sync` has it done beside the runs of this machine.
"""
