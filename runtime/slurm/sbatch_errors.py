"""Why sbatch refused a job, in one line at the field of the cluster file; or that SLURM does not answer."""

import re
from collections.abc import Iterator
from pathlib import Path

from runtime.slurm.client import NoAnswerError
from specs.document.files import CATALOG, DocumentError, locate
from specs.slurm import DECIDED, Slurm

_FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("account", ("slurm.account", "slurm.partition")),
    ("partition", ("slurm.partition", "slurm.planning_partition")),
    ("qos", ("slurm.qos",)),
    ("reservation", ("slurm.reservation",)),
    ("feature", ("slurm.constraint",)),
    ("generic resource", ("slurm.gres", "devices_per_node")),
    ("gres", ("slurm.gres", "devices_per_node")),
    ("time limit", ("slurm.time_limit",)),
    ("memory", ("slurm.memory",)),
    ("temporary disk", ("slurm.extra.tmp",)),
    ("node name", ("slurm.extra.nodelist", "slurm.extra.exclude")),
    ("license", ("slurm.extra.licenses",)),
    ("node count", ("devices",)),
    ("processors", ("slurm.cpus_per_device", "devices")),
    ("cpu count", ("slurm.cpus_per_device", "devices_per_node")),
    ("node configuration", ("slurm.gres", "slurm.constraint", "devices_per_node")),
)
"""Terms in SLURM's messages, most specific first, and the fields they are about (SLURM 22.05, slurm_errno.c)."""
_NO_ANSWER = ("unable to contact", "timed out", "zero bytes", "standby mode", "temporarily")
"""Parts of messages that are not about the job, from the same list."""
_PREFIX = re.compile(r"sbatch: (error: )?|Batch job submission failed: |allocation failure: ")


def refusal(cluster: Path, slurm: Slurm, output: str) -> DocumentError | NoAnswerError:
    """Why sbatch refused a job; `output` is all that it printed, `slurm` the section of the cluster file."""
    lines = [_PREFIX.sub("", line).strip() for line in output.splitlines() if not line.isspace()]
    reason = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith('Try "sbatch')))
    if any(part in reason.lower() for part in _NO_ANSWER):
        return NoAnswerError(f"SLURM does not answer: {reason}; try again later")
    field = _field(reason, slurm)
    what = f"SLURM refuses the job: {reason or 'it gives no reason'}"
    return locate(cluster, field, what, _remedy(cluster, field))


def _remedy(cluster: Path, field: str) -> str:
    correct = f"correct {field} in this file"
    if cluster.is_relative_to(CATALOG):
        correct = f"name a copy of this file in the budget and correct {field} in the copy"
    if field == "devices":  # a plan's layouts rest on it
        correct += " and plan the budget again under another name"
    return f"{correct}, or ask the cluster's administrators"


def _field(reason: str, slurm: Slurm) -> str:
    """The field that a refusal is about."""
    candidates = list(_candidates(reason, slurm))
    given = [field for field in candidates if _value(field, slurm) is not None]
    words = reason.replace(";", " ").split()
    quoted = [field for field in given if str(_value(field, slurm)) in words]
    return next(iter((*quoted, *given, *candidates)), "slurm")


def _candidates(reason: str, slurm: Slurm) -> Iterator[str]:
    """Fields that it may be about, for the first term that it contains."""
    option = re.search(r"--([a-z][a-z0-9-]*)", reason)
    if option:
        yield f"slurm.{DECIDED[option[1]]}" if DECIDED.get(option[1]) else f"slurm.extra.{option[1]}"
        return
    yield from next((fields for term, fields in _FIELDS if term in reason.lower()), ())


def _value(field: str, slurm: Slurm) -> object:
    """A field's value in the file; None where it is not set, and "" for a required one."""
    part, _, name = field.rpartition(".")
    if part == "slurm.extra":
        return slurm.extra.get(name)
    if part == "slurm":
        return getattr(slurm, name) if name in slurm.model_fields_set else None
    return ""
