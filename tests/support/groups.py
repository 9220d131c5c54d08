"""Which tests follow each other in one process, where pytest-xdist runs them in several.

(Its own `--dist loadgroup` does nothing with pytest 9.2: pytest-dev/pytest-xdist issue 1386.)
"""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

SURVIVAL = "slurm/test_survival.py"

GROUPS = {
    # A cluster each, which is brought up once; they take about the same time.
    "slurm 1": (
        f"{SURVIVAL}::test_it_survives_the_end_of_its_time_without_a_warning",
        f"{SURVIVAL}::test_it_survives_a_node_without_power",
        f"{SURVIVAL}::test_it_survives_without_a_controller",
        f"{SURVIVAL}::test_it_survives_a_rank_that_is_slow_and_then_hangs",
    ),
    "slurm 2": (SURVIVAL,),
    "slurm 3": (
        "slurm/test_study.py",
        "slurm/test_status.py",
        "slurm/test_doctor.py",
        "slurm/test_errors.py",
        "slurm/test_preflight.py",
    ),
    "slurm 4": (
        "slurm/test_pilots.py",
        "slurm/test_going_on.py",
        "slurm/test_containers.py",
        "slurm/test_cluster.py",
        "slurm/test_data.py",
        "slurm/test_queue.py",
    ),
    # They start ranks and kill them at chosen moments, and would disturb each other.
    "ranks": (
        "runtime/train/test_survival.py",
        "runtime/train/test_resume.py",
        "runtime/train/test_pipeline_run.py",
        "runtime/train/test_spike_guard.py",
        "runtime/train/test_train.py",
        "runtime/train/test_watchdog.py",
        "runtime/launch/test_local.py",
        "model/test_mesh.py",
        "model/test_tensor_parallel_run.py",
    ),
    # What they look at is trained once.
    "commands": ("runtime/commands/test_run_cli.py",),
    # One test of minutes, which is not to be the last.
    "readme": ("test_readme.py",),
    "checkpoints": ("runtime/checkpoint/test_inspect.py", "runtime/checkpoint/test_export_hf.py"),
    "audits": ("runtime/audit/test_verdict.py",),
    # What they look at is carried out or fitted once.
    "light": ("isoplan/test_light.py",),
    "library": ("isoplan/test_library.py",),
}
"""Files and single functions, in the order in which the groups are begun; any other test is a group of its own."""

_PLACES = {
    f"tests/{member}": (at, name) for at, (name, members) in enumerate(GROUPS.items()) for member in members
}


def place(nodeid: str) -> int:
    """Where a test's group is in the order of all, which single tests are the end of."""
    return _found(nodeid)[0]


def group(nodeid: str) -> str:
    """The name of a test's group."""
    return _found(nodeid)[1]


def _found(nodeid: str) -> tuple[int, str]:
    function = nodeid.partition("[")[0]
    alone = (len(GROUPS), nodeid)
    return _PLACES.get(function, _PLACES.get(function.partition("::")[0], alone))


class GroupScheduling(LoadScopeScheduling):
    """Hands out whole groups in the order in which they were collected.

    A process does not begin its last test before it has another one to do after it. Where that last one is of a group,
    and may take minutes, it gets a single test of the end, so that no group waits for it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _reschedule(self, node: WorkerController) -> None:
        units = self.assigned_work[node].values()
        waiting = [nodeid for unit in units for nodeid, done in unit.items() if not done]
        if any(group(nodeid) in GROUPS for nodeid in waiting):
            if len(waiting) > 1:
                return
            if self.workqueue:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._reschedule(node)
