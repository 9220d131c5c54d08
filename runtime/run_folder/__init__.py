"""A run's folder: its files, its lock, and how it is found.

`runs/<fingerprint>/` is all state that a run has; a killed process and a fresh one open it in the same way. Front door:
`runtime.run_folder.folder.RunFolder`.
"""
