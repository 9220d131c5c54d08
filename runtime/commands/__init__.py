"""The commands of `run`, `audit` and `isoplan`: arguments, help texts, what is printed, exit codes.

`run` has run, audit and data; `tools` init, import, export, checkpoints, rehearse and doctor; `monitor` status, logs
and cancel. `isoplan.verbs` lists them.
"""
