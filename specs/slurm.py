"""How runs are queued: the SLURM settings of a cluster file. They change when and where a run happens, never its
numbers.

Values reach SLURM unchanged, quoted in its script and never read by a shell. `prologue` is the exception: its lines are
shell.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from specs.document.base import Spec
from specs.document.quantity import Bytes, Seconds

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$"), Field(examples=["gpu"])]
"""Text of one line."""

Gres = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z]\w*(:[A-Za-z][\w.-]*)?$"), Field(examples=["gpu:h100"])
]
"""Name of a generic resource, and its type."""

DECIDED = {
    "account": "account",
    "array": None,
    "clusters": None,
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_device",
    "dependency": None,
    "error": None,
    "exclusive": "exclusive",
    "gpus-per-node": "gres",
    "gres": "gres",
    "job-name": None,
    "mem": "memory",
    "mincpus": None,
    "no-requeue": None,
    "nodes": "min_nodes",
    "ntasks": None,
    "ntasks-per-node": None,
    "open-mode": None,
    "output": None,
    "parsable": None,
    "partition": "partition",
    "qos": "qos",
    "requeue": None,
    "reservation": "reservation",
    "signal": "warning",
    "test-only": None,
    "time": "time_limit",
    "wait": None,
}
"""sbatch options that `extra` may not hold, by the field below that sets them; null where isoplan sets them itself."""
SRUN_DECIDED: dict[str, str | None] = {
    "chdir": None,
    "cpus-per-task": "cpus_per_device",
    "distribution": None,
    "error": None,
    "exclusive": "exclusive",
    "export": None,
    "gpus-per-node": "gres",
    "gpus-per-task": "gres",
    "gres": "gres",
    "input": None,
    "job-name": None,
    "jobid": None,
    "kill-on-bad-exit": None,
    "label": None,
    "mem": "memory",
    "multi-prog": None,
    "nodelist": None,
    "nodes": "min_nodes",
    "no-kill": None,
    "ntasks": None,
    "ntasks-per-node": None,
    "open-mode": None,
    "output": None,
    "overlap": None,
    "partition": "partition",
    "pty": None,
    "relative": None,
    "signal": "warning",
    "test-only": None,
    "time": "time_limit",
    "unbuffered": None,
    "wait": None,
}
"""srun options that `srun` may not hold, as above: what the script's srun says itself, or takes from its job."""
_TICK_S = 30.0
"""A warning may come this much early, since SLURM checks its timers this often (docs/log.md, 2026-11-28)."""


class Slurm(Spec):
    """SLURM settings of a cluster file."""

    partition: Line | None = None
    """Partition of the runs; null is SLURM's default."""
    planning_partition: Line | None = None
    """Partition of the jobs that plan and audit between the runs, on one core; null is `partition`."""
    account: Line | None = None
    """Account that is charged."""
    qos: Line | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features that nodes must have."""
    reservation: Line | None = None
    """Reservation to run in."""
    gres: Gres | None = None
    """Generic resource of one device, `gpu` or `gpu:<type>`; the layout adds how many. Null asks for GPUs where the
    devices are GPUs."""
    exclusive: bool = False
    """No other jobs on the nodes."""
    time_limit: Seconds = 86400.0
    """Longest time of one job. A run that needs longer is warned, saves a checkpoint and is requeued."""
    warning: Seconds = 120.0
    """Time before that limit at which SLURM signals the ranks to save a checkpoint."""
    memory: Bytes | None = None
    """Host memory that a job requests on each node; null requests what the plan needs there. The partition's default is
    left where the site does not share memory out, and to a run spec on CPUs, which has no plan."""
    cpus_per_device: int | None = Field(default=None, ge=1)
    """CPU cores for each GPU; null is its share of `cpus_per_node`, or the partition's default where that is not
    written. On CPUs the layout's threads are requested."""
    min_nodes: int | None = Field(default=None, ge=1)
    """Start on as few nodes as this where no more are free, under the best layout for them; null waits for all."""
    pilots_at_once: int = Field(default=64, ge=1)
    """Most runs of a plan that are at work at once, in all of its arrays together."""
    retries: int = Field(default=3, ge=0)
    """Retries of a crashed run that wrote no new checkpoint since the last start."""
    modules: tuple[Line, ...] = ()
    """Environment modules to load."""
    prologue: tuple[Line, ...] = ()
    """Lines of shell before the ranks start, as written."""
    container: tuple[Line, ...] = ()
    """Command that runs another inside a container, as a list: `[apptainer, exec, --nv, image.sif]`."""
    extra: dict[str, Line | bool | int] = Field(default_factory=dict)
    """Other options of sbatch, passed on as they are; true is an option without a value."""
    srun: dict[str, Line | bool | int] = Field(default_factory=dict)
    """Options of the srun that starts the ranks, and of no other command: `{container-image: /images/torch.sqsh}` with
    pyxis. The script itself stays outside of the container."""

    @field_validator("extra")
    @classmethod
    def _for_sbatch(cls, extra: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        pyxis = next((name for name in extra if name.startswith("container-")), None)
        if pyxis is not None:
            raise ValueError(
                f"--{pyxis} in extra would put the whole script into the container, which has no scontrol; write it "
                "under slurm.srun"
            )
        return _checked(extra, "extra", "an sbatch option; write it without dashes, like 'nodelist'", DECIDED)

    @field_validator("srun")
    @classmethod
    def _for_srun(cls, srun: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        like = "an srun option; write it without dashes, like 'container-image'"
        return _checked(srun, "srun", like, SRUN_DECIDED)

    @model_validator(mode="after")
    def _time_to_save(self) -> Self:
        if self.time_limit <= self.warning + _TICK_S:
            raise ValueError(
                f"slurm.time_limit {self.time_limit:g} s leaves no time to train: the warning comes "
                f"{self.warning:g} s before it, and up to {_TICK_S:g} s early; write a longer time limit"
            )
        return self


def _checked(
    options: dict[str, str | bool | int], field: str, like: str, decided: Mapping[str, str | None]
) -> dict[str, str | bool | int]:
    """Options by their long names, none of which is set elsewhere; ValueError for the first that is not so."""
    for name, value in options.items():
        if not re.fullmatch("[a-z][a-z0-9-]*", name):
            raise ValueError(f"{name!r} is not a long name of {like}")
        if name in decided:
            setter = f"slurm.{decided[name]} sets it" if decided[name] else "isoplan sets it"
            raise ValueError(f"--{name} is not allowed in {field}, since {setter}; remove it")
        if value is False:
            raise ValueError(f"--{name} has no value; write true, or remove it")
    return options
