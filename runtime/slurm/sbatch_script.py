"""From a run's layout and a cluster file to the parameters of its sbatch script, which submitit writes.

    #SBATCH lines         the shape of the job and the cluster file's options, each value quoted
    modules, prologue     then the preflight, where the cluster file wants it (runtime/slurm/preflight)
    the ranks             one srun task per device
    requeue               decides whether the job is requeued (runtime/slurm/requeue.py); the shell itself calls squeue
                          and scontrol, since a container may not have them

A rank that gets a stop signal saves a checkpoint and exits with status 0, then the shell runs the requeue step. The
trap keeps the shell alive when SLURM signals the whole job. The script exits with srun's own status.
"""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.launch.jobs import RunRequest
from runtime.slurm.preflight.script import lines as preflight_lines
from runtime.slurm.requeue import DO_NOT_REQUEUE, REQUEUE, START_MARK
from specs.cluster import Cluster
from specs.host_memory import rank_bytes, ranks_of_node
from specs.preflight import Preflight, PreflightOrder
from specs.record import Order
from specs.slurm import Slurm

_JOB_ID = "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}"
"""One task of an array has the array's own number as SLURM_JOB_ID; with that, squeue would list the whole array."""
_STATE = 'for _ in $(seq 60); do state=$(squeue -h -j "$job" -o "%T %L %r") && break; sleep 10; done'
_REQUEUE = (
    '[ "${state%% *}" = RUNNING ] && only=Incomplete; '
    'for _ in $(seq 60); do scontrol requeue $only "$job" && break; sleep 10; done'
)
"""Retries for ten minutes, which is longer than any restart of a controller we have seen. `Incomplete` skips a job that
was cancelled meanwhile; one that reached its time limit counts as complete."""
_UNSET_USER_SETTINGS = "unset ${!SQUEUE_@}"
"""Drops the user's settings for squeue, which the job inherits: SQUEUE_STATES hides jobs."""
PROBE_TIME_LIMIT_S = 360.0
"""Time limit of the doctor's job: two minutes for reports and rendezvous, and less than two for the benchmarks."""


@dataclass(frozen=True)
class JobShape:
    """The resources that a job requests; runs of one shape share an array."""

    nodes: int
    """Nodes."""
    min_nodes: int
    """Fewest nodes that it can start on."""
    tasks_per_node: int
    """Ranks on each node."""
    threads: int
    """CPU threads of each rank."""
    on_gpu: bool
    """Whether each rank has a GPU of its own."""
    cpus_per_gpu: int | None = None
    """CPU cores of a GPU's rank; None is the partition's default."""
    memory_bytes: float | None = None
    """Host memory of each node; None is the partition's default."""

    @property
    def cpus_per_task(self) -> int | None:
        """CPU cores of a rank."""
        return self.cpus_per_gpu if self.on_gpu else self.threads


def job_shape(order: Order, cluster: Cluster) -> JobShape:
    """The fewest nodes that a run's ranks fill evenly, and the fewest that it has a layout for."""
    execution = order.execution
    ranks, threads, on_gpu = execution.layout.devices, execution.threads_per_rank, execution.device == "cuda"
    whole = full_shape(ranks, threads, on_gpu, cluster)
    fewest = min(layout.devices for layout in (execution.layout, *order.fallback_layouts))
    min_nodes = max(cluster.slurm.min_nodes or whole.nodes, math.ceil(fewest / whole.tasks_per_node))
    return replace(whole, min_nodes=min(whole.nodes, min_nodes))


def full_shape(ranks: int, threads: int, on_gpu: bool, cluster: Cluster) -> JobShape:
    """The fewest nodes that this many ranks fill evenly."""
    each = ranks_of_node(ranks, threads, "cuda" if on_gpu else "cpu", cluster.devices_per_node)
    nodes, memory = ranks // each, cluster.slurm.memory
    return JobShape(nodes, nodes, each, threads, on_gpu, cluster.cpus_per_device if on_gpu else None, memory)


def needed_memory(request: RunRequest, shape: JobShape) -> float | None:
    """Host memory that a run's job requests on each node; None where neither the cluster file nor a plan says."""
    if shape.memory_bytes is not None:
        return shape.memory_bytes
    if request.memory_bytes is None and not request.on_gpu:
        return None
    execution, run = request.order.execution, request.run
    layouts = [execution.layout]
    if shape.min_nodes < shape.nodes:
        layouts += request.order.fallback_layouts
    needed = [
        rank_bytes(
            run.model,
            layout,
            run.optim.batch_sequences,
            execution.device,
            (request.memory_bytes or 0.0) * execution.layout.devices / layout.devices,
        )
        for layout in layouts
    ]
    return shape.tasks_per_node * max(needed)


def parameters(
    slurm: Slurm, shape: JobShape, name: str, folder: Path, at_once: int = 1, checks: Preflight | None = None
) -> dict[str, Any]:
    """submitit's parameters for runs of this shape, of which so many may be at work at once; `folder` is the
    submission's, an absolute path. With `checks` the nodes are checked first."""
    warning_s = math.ceil(slurm.warning)
    requeue = f"{python(slurm)} -P -m runtime.slurm.requeue {shlex.quote(str(folder))}"
    decide = f'{requeue} "$status" "$state" {warning_s}; next=$?; [[ $next = [{REQUEUE}{DO_NOT_REQUEUE}] ]] && break'
    nodes = str(shape.nodes) if shape.min_nodes == shape.nodes else f"{shape.min_nodes}-{shape.nodes}"
    cpus = shape.cpus_per_task
    options: dict[str, Any] = _common(slurm, name) | {
        "array_parallelism": at_once,
        "signal_delay_s": warning_s,
        "partition": slurm.partition,
        "srun_args": ["--kill-on-bad-exit=1", *srun_arguments(slurm, cpus)],
        "setup": [
            "trap : TERM USR1 USR2",
            f'echo "{START_MARK} ${{SLURM_RESTART_COUNT:-0}}" >&2',
            f"export PYTHONSAFEPATH=1 OMP_NUM_THREADS={shape.threads}",
            *_setup_lines(slurm),
            "set +eu",
            *([] if checks is None else _preflight(slurm, shape, folder, checks.timeout)),
        ],
        "teardown": [
            "status=$?",
            _JOB_ID,
            _UNSET_USER_SETTINGS,
            _STATE,
            f"for _ in 1 2 3; do {decide}; sleep 10; done",
            f'if [ "$next" = {REQUEUE} ]; then {_REQUEUE}; fi',
            'exit "$status"',
        ],
    }
    extra: dict[str, Any] = {"nodes": nodes, "requeue": True} | _extra_options(slurm)
    if shape.min_nodes == shape.nodes:
        options |= {"ntasks_per_node": shape.tasks_per_node, "cpus_per_task": cpus}
    else:  # SLURM would keep the first start's number of tasks; so the job requests CPUs, and srun sets the tasks
        extra["mincpus"] = shape.tasks_per_node * (cpus or 1)
        options["srun_args"] += [f"--ntasks-per-node={shape.tasks_per_node}"]
    if shape.on_gpu or slurm.gres:
        extra["gres"] = f"{slurm.gres or 'gpu'}:{shape.tasks_per_node}"
    if shape.memory_bytes is not None:
        extra["mem"] = _mebibytes(shape.memory_bytes)
    if slurm.exclusive:
        options["exclusive"] = True
    return _given(options) | {"additional_parameters": extra}


def _preflight(slurm: Slurm, shape: JobShape, folder: Path, timeout_s: float) -> list[str]:
    tasks = [f"--ntasks-per-node={shape.tasks_per_node}"]
    arguments = [*srun_arguments(slurm, shape.cpus_per_task), *tasks]
    return [_JOB_ID, _UNSET_USER_SETTINGS, *preflight_lines(python(slurm), arguments, folder, timeout_s)]


def preflight_order(cluster: Cluster, shape: JobShape) -> PreflightOrder:
    """What is measured and expected of the nodes of a job of this shape."""
    device = cluster.device
    promised: float | None = device.peak_fp32 * shape.threads
    if shape.on_gpu:
        promised = None if cluster.efficiency is None else device.peak_bf16 * cluster.efficiency.matmul
    return PreflightOrder(
        limits=cluster.preflight or Preflight(),
        device=device.backend,
        min_nodes=shape.min_nodes,
        tasks_per_node=shape.tasks_per_node,
        threads=shape.threads,
        gres=(cluster.slurm.gres or "gpu") if shape.on_gpu else cluster.slurm.gres,
        flop_per_s=promised,
        device_memory_bytes=device.memory if shape.on_gpu else None,
        host_memory_bytes=shape.memory_bytes,
    )


def probe_parameters(slurm: Slurm, shape: JobShape, name: str, folder: Path) -> dict[str, Any]:
    """submitit's parameters for the doctor's job: a run's, but short, never requeued, and with no requeue step."""
    short = slurm.model_copy(update={"time_limit": min(slurm.time_limit, PROBE_TIME_LIMIT_S)})
    options = parameters(short, shape, name, folder)
    extra = options["additional_parameters"] | {"no-requeue": True}
    del options["teardown"], extra["requeue"]
    alone = {
        "signal_delay_s": 0,
        "srun_args": ["--kill-on-bad-exit=0", *srun_arguments(slurm, options.get("cpus_per_task"))],
    }
    return options | alone | {"additional_parameters": extra}


def srun_arguments(slurm: Slurm, cpus: int | None) -> list[str]:
    """A rank that ends early does not end the others, ranks fill one node after the other, and each has its CPUs: from
    22.05 on, srun no longer inherits those from its job (srun(1), --cpus-per-task). Then the cluster file's own."""
    own = [f"--{name}" if value is True else f"--{name}={value}" for name, value in slurm.srun.items()]
    return [
        "--wait=0",
        "--distribution=block",
        *([] if cpus is None else [f"--cpus-per-task={cpus}"]),
        *own,
    ]


_ONE_TASK: dict[str, Any] = {"nodes": 1, "ntasks": 1, "requeue": True}
"""Of jobs that train nothing."""


def _mebibytes(size: float) -> str:
    """Memory as sbatch takes it."""
    return f"{math.ceil(size / 2**20)}M"


def study_parameters(slurm: Slurm, name: str, after: tuple[int, ...]) -> dict[str, Any]:
    """submitit's parameters for the job that continues a study once these jobs have ended."""
    options = _common(slurm, name) | {
        "partition": slurm.planning_partition or slurm.partition,
        "cpus_per_task": 1,
        "dependency": dependency(after) if after else None,
        "use_srun": False,
        "setup": ["export PYTHONSAFEPATH=1 OMP_NUM_THREADS=1", *_setup_lines(slurm)],
    }
    return _given(options) | {"additional_parameters": _ONE_TASK | _extra_options(slurm)}


def data_parameters(slurm: Slurm, name: str, cpus: int, node_share: float, jobs: int) -> dict[str, Any]:
    """submitit's parameters for an array of this many jobs that work on text, each on some CPUs of a node and with this
    share of its memory: no devices, and no signal before the time limit, since nothing would be saved at it."""
    options = _common(slurm, name) | {
        "partition": slurm.partition,
        "cpus_per_task": cpus,
        "array_parallelism": jobs,
        "signal_delay_s": 0,
        "use_srun": False,
        "setup": [
            f'echo "{START_MARK} ${{SLURM_RESTART_COUNT:-0}}" >&2',
            "export PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false",
            *_setup_lines(slurm),
        ],
    }
    extra = _ONE_TASK | _extra_options(slurm)
    if slurm.memory is not None:
        extra["mem"] = _mebibytes(slurm.memory * node_share)
    return _given(options) | {"additional_parameters": extra}


def node_cpus(cluster: Cluster) -> int:
    """CPUs of a node that its devices are, or come with."""
    each = cluster.cpus_per_device if cluster.device.backend == "cuda" else None
    return cluster.devices_per_node * (each or 1)


def dependency(jobs: Sequence[object], *, on_success: bool = False) -> str:
    """The dependency on the end of these jobs, however they end or only where all succeed."""
    return ("afterok:" if on_success else "afterany:") + ":".join(map(str, jobs))


def python(slurm: Slurm) -> str:
    """The command of the Python interpreter, quoted for a shell, inside the container where there is one."""
    return shlex.join([*slurm.container, sys.executable])


def _common(slurm: Slurm, name: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "time": math.ceil(slurm.time_limit / 60),
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
    }


def _setup_lines(slurm: Slurm) -> list[str]:
    """What the shell does before it starts Python."""
    modules = [f"module load {shlex.join(slurm.modules)}"] if slurm.modules else []
    return [*modules, *slurm.prologue]


def _extra_options(slurm: Slurm) -> dict[str, Any]:
    return _given({"reservation": slurm.reservation}) | _given(dict(slurm.extra))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are set; sbatch takes a backslash in quotes for an escape, a shell does not."""
    return {
        name: value.replace("\\", "\\\\") if isinstance(value, str) else value
        for name, value in options.items()
        if value is not None
    }
