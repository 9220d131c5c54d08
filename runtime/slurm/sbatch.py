"""From a run's layout and a cluster file to the parameters of its sbatch script, which submitit writes.

    #SBATCH lines         the shape of the job and what the cluster file says, each value quoted
    modules, prologue     then the ranks, one srun task per device
    afterwards            decides whether the job is queued again (runtime/slurm/requeue.py); SLURM is asked and told
                          by the shell, since there may be none in the container

A rank that is told to leave saves and ends with status 0, so the shell goes on to `afterwards`, also when SLURM has
sent a signal to all of the job: the trap keeps the shell from dying of it. It ends with srun's own status.
"""

import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.slurm.requeue import AGAIN, LEAVE_IT, MARK
from specs.cluster import Cluster
from specs.record import Order
from specs.slurm import Slurm

_JOB = "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}"
"""One task of an array has the array's own number as SLURM_JOB_ID; asked by that, SLURM would speak of all of them."""
_STATE = 'for _ in $(seq 60); do state=$(squeue -h -j "$job" -o "%T %L %r") && break; sleep 10; done'
_REQUEUE = (
    '[ "${state%% *}" = RUNNING ] && only=Incomplete; '
    'for _ in $(seq 60); do scontrol requeue $only "$job" && break; sleep 10; done'
)
"""A controller that restarts is waited for: ten minutes are longer than any restart we have seen. `Incomplete` leaves a
job alone that was cancelled meanwhile; one whose time is up counts as complete."""
_UNSAID = "unset ${!SQUEUE_@}"
"""A person's settings for squeue, which came along with the job: SQUEUE_STATES hides jobs."""
PROBE_S = 360.0
"""Longest time of the doctor's job: two minutes to report and to meet, and what it measures takes less than two."""


@dataclass(frozen=True)
class JobShape:
    """What a job asks for: runs of one shape share an array."""

    nodes: int
    """Nodes."""
    least_nodes: int
    """Fewest nodes that it starts on."""
    tasks_per_node: int
    """Ranks on each node."""
    threads: int
    """CPU threads of each rank."""
    on_gpu: bool
    """Whether each rank has a GPU of its own."""


def shape_of(order: Order, cluster: Cluster) -> JobShape:
    """The fewest nodes that a run's ranks fill evenly; and those it can start on, as far as it has layouts for them."""
    execution = order.execution
    ranks, threads, on_gpu = execution.layout.devices, execution.threads_per_rank, execution.device == "cuda"
    whole = whole_shape(ranks, threads, on_gpu, cluster)
    fewest = min(layout.devices for layout in (execution.layout, *order.fewer))
    wanted = max(cluster.slurm.min_nodes or whole.nodes, math.ceil(fewest / whole.tasks_per_node))
    return replace(whole, least_nodes=min(whole.nodes, wanted))


def whole_shape(ranks: int, threads: int, on_gpu: bool, cluster: Cluster) -> JobShape:
    """The fewest nodes that so many ranks fill evenly, all of them at once."""
    room = max(1, cluster.devices_per_node // (1 if on_gpu else threads))
    nodes = next(n for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= room)
    return JobShape(nodes, nodes, ranks // nodes, threads, on_gpu)


def parameters(slurm: Slurm, shape: JobShape, name: str, folder: Path) -> dict[str, Any]:
    """submitit's parameters for runs of this shape; `folder` is the submission's, an absolute path."""
    warning_s = math.ceil(slurm.warning)
    decide = f"{python(slurm)} -P -m runtime.slurm.requeue {shlex.quote(str(folder))}"
    afterwards = f'{decide} "$status" "$state" {warning_s}'
    nodes = str(shape.nodes) if shape.least_nodes == shape.nodes else f"{shape.least_nodes}-{shape.nodes}"
    cpus = slurm.cpus_per_device if shape.on_gpu else shape.threads
    asked: dict[str, Any] = _common(slurm, name) | {
        "array_parallelism": slurm.pilots_at_once,
        "signal_delay_s": warning_s,
        "partition": slurm.partition,
        "srun_args": ["--kill-on-bad-exit=1", *_srun(cpus)],
        "setup": [
            "trap : TERM USR1 USR2",
            f'echo "{MARK} ${{SLURM_RESTART_COUNT:-0}}" >&2',
            f"export PYTHONSAFEPATH=1 OMP_NUM_THREADS={shape.threads}",
            *_before(slurm),
            "set +eu",
        ],
        "teardown": [
            "status=$?",
            _JOB,
            _UNSAID,
            _STATE,
            f"for _ in 1 2 3; do {afterwards}; next=$?; [[ $next = [{AGAIN}{LEAVE_IT}] ]] && break; sleep 10; done",
            f'if [ "$next" = {AGAIN} ]; then {_REQUEUE}; fi',
            'exit "$status"',
        ],
    }
    extra: dict[str, Any] = {"nodes": nodes, "requeue": True} | _extra(slurm)
    if shape.least_nodes == shape.nodes:
        asked |= {"ntasks_per_node": shape.tasks_per_node, "cpus_per_task": cpus}
    else:  # SLURM would have as many tasks at the next start as at the first; so CPUs are asked for, and srun has tasks
        extra["mincpus"] = shape.tasks_per_node * (cpus or 1)
        asked["srun_args"] += [f"--ntasks-per-node={shape.tasks_per_node}"]
    if shape.on_gpu or slurm.gres:
        extra["gres"] = f"{slurm.gres or 'gpu'}:{shape.tasks_per_node}"
    if slurm.memory is not None:
        extra["mem"] = f"{math.ceil(slurm.memory / 2**20)}M"
    if slurm.exclusive:
        asked["exclusive"] = True
    return _said(asked) | {"additional_parameters": extra}


def probe_parameters(slurm: Slurm, shape: JobShape, name: str, folder: Path) -> dict[str, Any]:
    """submitit's parameters for the doctor's job: as a run's, but short, never queued again, and nothing follows."""
    short = slurm.model_copy(update={"time_limit": min(slurm.time_limit, PROBE_S)})
    asked = parameters(short, shape, name, folder)
    extra = asked["additional_parameters"] | {"no-requeue": True}
    del asked["teardown"], extra["requeue"]
    alone = {"signal_delay_s": 0, "srun_args": ["--kill-on-bad-exit=0", *_srun(asked.get("cpus_per_task"))]}
    return asked | alone | {"additional_parameters": extra}


def _srun(cpus: int | None) -> list[str]:
    """Ranks that end early keep the others, ranks lie in blocks of nodes, and each has its CPUs: from 22.05 on, srun
    no longer takes those from its job (srun(1), --cpus-per-task)."""
    return ["--wait=0", "--distribution=block", *([] if cpus is None else [f"--cpus-per-task={cpus}"])]


def study_parameters(slurm: Slurm, name: str, after: tuple[int, ...]) -> dict[str, Any]:
    """submitit's parameters for the job that goes on with a study once these jobs have ended."""
    asked = _common(slurm, name) | {
        "partition": slurm.planning_partition or slurm.partition,
        "cpus_per_task": 1,
        "dependency": "afterany:" + ":".join(map(str, after)) if after else None,
        "use_srun": False,
        "setup": ["export PYTHONSAFEPATH=1 OMP_NUM_THREADS=1", *_before(slurm)],
    }
    return _said(asked) | {
        "additional_parameters": {"nodes": 1, "ntasks": 1, "requeue": True} | _extra(slurm)
    }


def python(slurm: Slurm) -> str:
    """The interpreter as a shell reads it, inside the container where there is one."""
    return shlex.join([*slurm.container, sys.executable])


def _common(slurm: Slurm, name: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "time": math.ceil(slurm.time_limit / 60),
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
    }


def _before(slurm: Slurm) -> list[str]:
    """What the shell does before anything of ours."""
    modules = [f"module load {shlex.join(slurm.modules)}"] if slurm.modules else []
    return [*modules, *slurm.prologue]


def _extra(slurm: Slurm) -> dict[str, Any]:
    return _said({"reservation": slurm.reservation}) | _said(dict(slurm.extra))


def _said(asked: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody said; sbatch takes a backslash in quotes for an escape, a shell does not."""
    return {
        name: value.replace("\\", "\\\\") if isinstance(value, str) else value
        for name, value in asked.items()
        if value is not None
    }
