"""Why SLURM refused a job, as one line that points at what the cluster file says about it."""

import re
from pathlib import Path

from specs.files import DocumentError, locate

_FIELDS = (
    ("partition", "slurm.partition"),
    ("account", "slurm.account"),
    ("qos", "slurm.qos"),
    ("reservation", "slurm.reservation"),
    ("feature", "slurm.constraint"),
    ("generic resource", "slurm.gres"),
    ("gres", "slurm.gres"),
    ("time limit", "slurm.time_limit"),
    ("memory", "slurm.memory"),
    ("node count", "devices"),
    ("more processors", "devices_per_node"),
    ("node configuration", "devices_per_node"),
)
"""What SLURM's messages speak of, most telling first, and the field that says it (SLURM 22.05, slurm_errno.c)."""


def refusal(cluster: Path, said: str) -> DocumentError:
    """The refusal of a job that sbatch did not take; `said` is all that it printed."""
    lines = [line.strip() for line in said.splitlines() if not line.startswith('Try "sbatch --help"')]
    told = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    reasons = [line.removeprefix("Batch job submission failed: ") for line in told] or [
        lines[-1] if lines else ""
    ]
    reason = "; ".join(dict.fromkeys(reasons))
    return locate(
        cluster,
        _field(reason),
        f"SLURM refuses the job: {reason}",
        "correct it here, or ask the site's people",
    )


def _field(reason: str) -> str:
    option = re.search(r"--([a-z][a-z0-9-]*)", reason)
    if option:
        return f"slurm.extra.{option[1]}"
    return next((field for word, field in _FIELDS if word in reason.lower()), "slurm")
