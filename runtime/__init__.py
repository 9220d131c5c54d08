"""What touches the world: corpora, training, checkpoints, launching, SLURM, audits; imports `model` and `specs`.

Packages in import order: `run_folder`, `data`, `rehearse`; `checkpoint`, `audit`; `train`, `launch`; `study.py`;
`slurm`; `status`, `doctor`; `commands`. Front door: `commands`, which are verbs of `isoplan`.
"""
