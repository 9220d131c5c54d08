"""Which tests follow each other in one process, where pytest-xdist runs them in several.

(Its own `--dist loadgroup` does nothing with pytest 9.2: pytest-dev/pytest-xdist issue 1386.)
"""

from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    # A cluster each, which is brought up once; three that take about the same time.
    "slurm 1": ("slurm/test_survival.py",),
    "slurm 2": ("slurm/test_going_on.py", "slurm/test_pilots.py", "slurm/test_cluster.py"),
    "slurm 3": (
        "slurm/test_study.py",
        "slurm/test_queue.py",
        "slurm/test_status.py",
        "slurm/test_errors.py",
        "slurm/test_doctor.py",
    ),
    # They start ranks and kill them at chosen moments, and would disturb each other.
    "ranks": (
        "runtime/train/test_survival.py",
        "runtime/train/test_resume.py",
        "runtime/train/test_pipeline_run.py",
        "runtime/train/test_spike_guard.py",
        "runtime/train/test_train.py",
        "runtime/launch/test_local.py",
        "model/test_mesh.py",
        "model/test_tensor_parallel_run.py",
    ),
    # What they look at is trained once.
    "commands": ("runtime/commands/test_run_cli.py",),
    "checkpoints": ("runtime/checkpoint/test_inspect.py", "runtime/checkpoint/test_export_hf.py"),
    "audits": ("runtime/audit/test_verdict.py",),
}
"""Files of tests in groups, in the order in which the groups are begun; any other test is a group of its own."""

_PLACES = {
    f"tests/{file}": (place, name) for place, (name, files) in enumerate(GROUPS.items()) for file in files
}


def place(nodeid: str) -> int:
    """Where a test's group is in the order of all, which single tests are the end of."""
    return _PLACES.get(_file(nodeid), (len(GROUPS), ""))[0]


def group(nodeid: str) -> str:
    """The name of a test's group."""
    return _PLACES.get(_file(nodeid), (0, nodeid))[1]


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class GroupScheduling(LoadScopeScheduling):
    """Hands out whole groups in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
