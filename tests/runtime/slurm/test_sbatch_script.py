"""What is asked of SLURM, and what it is told to run, without a SLURM."""

import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from runtime.launch.jobs import RunRequest
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import submit
from runtime.slurm.at_once import share
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch_errors import refusal
from runtime.slurm.sbatch_script import JobShape, job_shape
from runtime.slurm.study import ContinueStudy
from runtime.slurm.submit import ClusterFile, PreparedSubmission
from runtime.slurm.task import Task
from specs.cluster import Cluster
from specs.document.files import DocumentError, catalog_path, from_catalog, load
from specs.host_memory import MARGIN, PROCESS_BYTES
from specs.record import Order
from specs.slurm import Slurm
from tests.support import samples

LAPTOP = from_catalog(Cluster, "laptop", None)


def asked(per_node: int = 2, **slurm: Any) -> ClusterFile:
    """A cluster of such nodes with these settings."""
    changes = {"devices_per_node": per_node, "slurm": Slurm(**slurm)}
    return ClusterFile(Path("lab.yaml"), LAPTOP.model_copy(update=changes))


def order(ranks: int, threads: int = 1, device: str = "cpu", fallback_layouts: tuple[int, ...] = ()) -> Order:
    layouts = {number: samples.layout(dp=number) for number in (ranks, *fallback_layouts)}
    changes = {"device": device, "layout": layouts[ranks], "threads_per_rank": threads}
    return Order(
        run="0" * 16,
        title="a run",
        seal=None,
        execution=samples.execution().model_copy(update=changes),
        fallback_layouts=tuple(layouts[number] for number in fallback_layouts),
        peak_flop_per_s=None,
        curve=None,
    )


def wanted(seed: int = 0, planned_s: float = 1.0) -> RunRequest:
    run = samples.run(seed=seed)
    order = Order(
        run=run.fingerprint(),
        title="",
        seal=None,
        execution=samples.execution(),
        peak_flop_per_s=None,
        curve=None,
    )
    return RunRequest(Path("plan.yaml"), "", f"run {seed}", run, order, planned_s)


def drafted(folder: Path, how: ClusterFile, *runs: RunRequest, most: int = 8) -> list[PreparedSubmission]:
    return submit.submissions_for(Workspace(folder), how, runs or (wanted(),), "mini-pilots", Task, most)


def options(script: PreparedSubmission) -> list[str]:
    """Its lines for sbatch."""
    return [line for line in script.text.splitlines() if line.startswith("#SBATCH")]


# --- shapes ---


@pytest.mark.parametrize(
    ("of", "per_node", "least", "shape"),
    [
        (order(1), 2, None, JobShape(1, 1, 1, 1, False)),
        (order(4), 2, None, JobShape(2, 2, 2, 1, False)),
        (order(6), 4, None, JobShape(2, 2, 3, 1, False)),
        (order(7), 4, None, JobShape(7, 7, 1, 1, False)),
        (order(4, threads=2), 4, None, JobShape(2, 2, 2, 2, False)),
        (order(2, threads=9), 4, None, JobShape(2, 2, 1, 9, False)),
        (order(16, threads=3, device="cuda"), 8, None, JobShape(2, 2, 8, 3, True)),
        (order(16, fallback_layouts=(8, 4, 2)), 2, 3, JobShape(8, 3, 2, 1, False)),
        (order(16, fallback_layouts=(8,)), 2, 3, JobShape(8, 4, 2, 1, False)),
        (order(16), 2, 3, JobShape(8, 8, 2, 1, False)),
        (order(2), 2, 3, JobShape(1, 1, 2, 1, False)),
    ],
)
def test_ranks_fill_the_fewest_nodes_evenly(
    of: Order, per_node: int, least: int | None, shape: JobShape
) -> None:
    assert job_shape(of, asked(per_node, min_nodes=least).cluster) == shape


def test_an_array_is_as_long_as_the_site_allows_and_the_longest_run_begins(tmp_path: Path) -> None:
    runs = [wanted(seed, planned_s=float(seed)) for seed in range(10)]
    made = drafted(tmp_path, asked(pilots_at_once=3), *runs, most=8)
    assert [len(one.tasks) for one in made] == [8, 2]
    assert [run for one in made for run in one.submission.runs] == [
        one.run.fingerprint() for one in reversed(runs)
    ]
    assert "#SBATCH --array=0-7%2" in options(made[0])
    assert "#SBATCH --array=0-1%1" in options(made[1])
    assert [one.after for one in made] == [(), ()]
    assert len({one.submission.name for one in made}) == 2
    [alone] = drafted(tmp_path, asked())
    assert "--array" not in alone.text


def test_arrays_share_what_may_be_at_work_at_once(tmp_path: Path) -> None:
    runs = [wanted(seed) for seed in range(10)]
    first, second, third = drafted(tmp_path, asked(pilots_at_once=2), *runs, most=4)
    assert (first.after, second.after, third.after) == ((), (), (first.submission.name,))
    how, folder = asked(pilots_at_once=2), Workspace(tmp_path)
    [beside] = submit.submissions_for(folder, how, runs[:4], "mini-pilots", Task, 8, live=["7"])
    assert "#SBATCH --array=0-3%1" in options(beside)
    assert beside.after == ()
    [later] = submit.submissions_for(folder, how, runs[:4], "mini-pilots", Task, 8, live=["7", "8_1"])
    assert "#SBATCH --array=0-3%2" in options(later)
    assert later.after == ("7", "8_1")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("sizes", [[1], [9], [8, 2], [1, 1, 1], [8, 8, 8, 8, 3], [1, 30, 4]])
def test_never_more_at_once_than_the_limit_and_no_fewer_than_could_be(sizes: list[int], limit: int) -> None:
    shares = share(sizes, limit)
    begin = [one for one, of in enumerate(shares) if of.after is None]
    assert sum(shares[one].at_once for one in begin) == min(limit, sum(sizes[one] for one in begin))
    assert all(shares[one].at_once <= sizes[one] for one in begin)
    lanes: dict[int | None, int] = {}
    for one, of in enumerate(shares):  # one array of a lane at a time, with the lane's share
        lane = one if of.after is None else lanes[of.after]
        lanes[one] = lane
        assert of.at_once == shares[lane].at_once
    assert len(begin) == min(len(sizes), limit)


# --- CPUs and memory ---


def requested(of: Order, memory_bytes: float | None, **changes: Any) -> RunRequest:
    plain = samples.run(**changes)
    return RunRequest(Path("plan.yaml"), "", "a run", plain, of, 1.0, memory_bytes)


def gpus(**top: Any) -> ClusterFile:
    """Nodes of eight GPUs."""
    how = asked(8, **top.pop("slurm", {}))
    device = how.cluster.device.model_copy(update={"backend": "cuda"})
    return ClusterFile(how.path, how.cluster.model_copy(update={"device": device, **top}))


def test_a_gpu_gets_its_share_of_the_node_and_the_memory_that_a_checkpoint_takes(tmp_path: Path) -> None:
    """The 7B's 12 bytes a parameter, over the data-parallel ranks of a node that hold each of them once."""
    seven = samples.model(layers=30, width=4096, heads=32, kv_heads=32, ffn=11008, vocab=102400, context=4096)
    run = requested(order(8, device="cuda"), 70e9, model=seven, optim=samples.optim(batch_sequences=64))
    [script] = drafted(tmp_path, gpus(cpus_per_node=96), run)
    assert "#SBATCH --cpus-per-task=12" in options(script)
    assert "--cpus-per-task=12 " in script.text.partition("\nsrun ")[2]
    [asked_for] = [line for line in options(script) if line.startswith("#SBATCH --mem=")]
    batch = 2 * 8 * 64 * 4097
    least = MARGIN * (12 * seven.params + 8 * PROCESS_BYTES["cuda"] + batch)
    assert int(asked_for.removeprefix("#SBATCH --mem=").removesuffix("M")) * 2**20 == pytest.approx(
        least, rel=1e-3
    )


def test_what_the_cluster_file_says_wins_and_a_pilot_of_an_array_has_the_largest_ones_memory(
    tmp_path: Path,
) -> None:
    small, large = (requested(order(2), size, seed=seed) for seed, size in enumerate((1e8, 3e8)))
    [script] = drafted(tmp_path, asked(), small, large)
    least = 2 * MARGIN * (3e8 + PROCESS_BYTES["cpu"])
    [asked_for] = [line for line in options(script) if line.startswith("#SBATCH --mem=")]
    assert int(asked_for.removeprefix("#SBATCH --mem=").removesuffix("M")) * 2**20 == pytest.approx(
        least, rel=0.01
    )
    [own] = drafted(tmp_path, asked(memory="2 GiB"), small)
    assert "#SBATCH --mem=2048M" in options(own)
    for settings, shares in (("CR_CPU", False), ("CR_CORE_MEMORY", True), ("CR_Core_Memory", True)):
        assert submit.shares_memory({"SelectTypeParameters": settings}) is shares
    [silent] = submit.submissions_for(
        Workspace(tmp_path), asked(), [small], "mini", Task, 8, shares_memory=False
    )
    assert "--mem" not in silent.text
    [bare] = drafted(tmp_path, asked(), requested(order(2), None))
    assert "--mem" not in bare.text
    one_gpu = requested(order(1, device="cuda"), 1e9)
    [own] = drafted(tmp_path, gpus(cpus_per_node=96, slurm={"cpus_per_device": 3}), one_gpu)
    assert "#SBATCH --cpus-per-task=3" in options(own)


def test_on_fewer_nodes_a_rank_holds_more(tmp_path: Path) -> None:
    how = order(4, fallback_layouts=(2,))
    [script] = drafted(tmp_path, asked(min_nodes=1), requested(how, 4e8))
    [asked_for] = [line for line in options(script) if line.startswith("#SBATCH --mem=")]
    assert int(asked_for.removeprefix("#SBATCH --mem=").removesuffix("M")) > 2 * MARGIN * 8e8 / 2**20


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        (
            "cpus_per_device: 13",
            "cpus_per_device 13 on 8 devices is more than cpus_per_node 96; write at most 12",
        ),
        ("memory: 2 TB", "slurm.memory 2e+12 B is more than memory_per_node 1e+12 B; write at most that"),
    ],
)
def test_more_than_a_node_has_is_no_cluster(tmp_path: Path, slurm: str, says: str) -> None:
    path = tmp_path / "lab.yaml"
    sizes = f"cpus_per_node: 96\nmemory_per_node: 1 TB\nslurm: {{{slurm}}}\n"
    path.write_text(catalog_path(Cluster, "h100-64").read_text() + sizes)
    with pytest.raises(DocumentError, match=re.escape(says)):
        load(path, Cluster)


# --- the script ---


def test_only_what_is_said_is_asked_for(tmp_path: Path) -> None:
    [script] = drafted(tmp_path, asked())
    name, folder = script.submission.name, script.folder
    assert folder == tmp_path / "slurm" / name
    assert options(script) == [
        "#SBATCH --cpus-per-task=1",
        f"#SBATCH --error={folder}/%j_0_log.err",
        f"#SBATCH --job-name={name}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={folder}/%j_0_log.out",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --time=1440",
    ]


def test_values_are_quoted_for_sbatch_and_the_shells_lines_are_as_written(tmp_path: Path) -> None:
    how = asked(
        extra={"comment": r"a 'b' $c \d", "nice": 5, "hold": True},
        modules=("cuda/12", "a b"),
        prologue=("export A='b c'",),
        container=("apptainer", "exec", "my image.sif"),
        srun={
            "container-image": r"/images/a b$(c)\d.sqsh",
            "container-mounts": "/home:/home",
            "overcommit": True,
        },
    )
    [script] = drafted(tmp_path, how)
    assert r"""#SBATCH --comment='a '"'"'b'"'"' $c \\d'""" in options(script)
    assert "#SBATCH --nice=5" in options(script)
    assert "#SBATCH --hold" in options(script)
    lines = script.text.splitlines()
    assert lines.index("module load cuda/12 'a b'") < lines.index("export A='b c'")
    [ranks] = [line for line in lines if line.startswith("srun ")]
    assert lines.index("export A='b c'") < lines.index(ranks)
    assert f"apptainer exec 'my image.sif' {sys.executable} -u -m submitit.core._submit " in ranks
    words = shlex.split(ranks)
    mine = words[: words.index("apptainer")][-3:]
    assert mine == [
        r"--container-image=/images/a b$(c)\d.sqsh",
        "--container-mounts=/home:/home",
        "--overcommit",
    ]
    assert script.text.count("--container-image") == 1


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({"srun": {"output": "x"}}, "--output is not allowed in srun, since isoplan sets it; remove it"),
        ({"srun": {"time": 5}}, "--time is not allowed in srun, since slurm.time_limit sets it; remove it"),
        ({"srun": {"--overcommit": True}}, "'--overcommit' is not a long name of an srun option; write it"),
        ({"srun": {"a b; reboot": True}}, "'a b; reboot' is not a long name of an srun option"),
        ({"srun": {"overcommit": False}}, "--overcommit has no value; write true, or remove it"),
        ({"extra": {"mem": "1G"}}, "--mem is not allowed in extra, since slurm.memory sets it; remove it"),
        ({"extra": {"container-image": "a"}}, "has no scontrol; write it under slurm.srun"),
    ],
)
def test_options_that_are_set_elsewhere_are_refused(slurm: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        asked(**slurm)


def test_a_study_goes_on_in_a_job_of_one_core(tmp_path: Path) -> None:
    how = asked(partition="gpu", planning_partition="cpu", gres="gpu", memory="1 GB")
    script = submit.study_submission(Workspace(tmp_path), how, Path("b.yaml"), "mini", ContinueStudy, (3, 12))
    said = options(script)
    for option in ("partition=cpu", "cpus-per-task=1", "ntasks=1", "nodes=1", "dependency=afterany:3:12"):
        assert f"#SBATCH --{option}" in said
    assert "gres" not in script.text
    assert "srun" not in script.text
    assert script.tasks == (ContinueStudy(str(tmp_path), "b.yaml", script.submission.name),)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("50%", "%"),
        (r"a\b", r"\\"),
        ("a\nb", r"\n"),
        ("a\tb", r"\t"),
        ("a\u2028b", r"\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_a_path_that_slurm_would_misread_is_refused_in_one_line(name: str, shown: str) -> None:
    with pytest.raises(RefusedError) as caught:
        submit.check_path(Workspace(Path("/home") / name))
    message = str(caught.value)
    assert message.startswith("/home/")
    assert message.isprintable()
    assert f": SLURM misreads {shown} in a path; move to a folder without this character" in message


@pytest.mark.parametrize("name", ["plain", "a $HOME of 'one' \"own\"; touch x # `y` & ü*"])
def test_other_paths_are_not(tmp_path: Path, name: str) -> None:
    submit.check_path(Workspace(tmp_path / name))


# --- what a task is handed ---


def test_a_task_is_handed_a_path_and_nothing_else(tmp_path: Path) -> None:
    task = Task("/home/someone/runs/0123456789abcdef")
    DelayedSubmission(task).dump(tmp_path / "task.pkl")
    assert (tmp_path / "task.pkl").stat().st_size < 300
    assert vars(task) == {"folder": "/home/someone/runs/0123456789abcdef"}
    code = (
        "import pickle, sys\n"
        "handed = pickle.load(open('task.pkl', 'rb'))\n"
        "print(handed.function, handed.args, handed.kwargs, 'torch' in sys.modules)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert loaded.stdout == f"{task} () {{}} False\n"
    assert pickle.loads((tmp_path / "task.pkl").read_bytes()).function == task


# --- refusals ---

# what sbatch printed: (where it points, what it says)
SAID: dict[str, tuple[str, str]] = {
    "sbatch: error: invalid partition specified: b\nsbatch: error: Batch job submission failed: Invalid partition "
    "name specified\n": ("planning", "invalid partition specified: b; Invalid partition name specified"),
    "allocation failure: Invalid partition name specified\n": (
        "partition",
        "Invalid partition name specified",
    ),
    "sbatch: unrecognized option '--foo=1'\nsbatch: error: Try \"sbatch --help\" for more information\n": (
        "foo",
        "unrecognized option '--foo=1'",
    ),
    "sbatch: error: Invalid --time specification\n": ("slurm", "Invalid --time specification"),
    "sbatch: error: lua: you have no budget left\nsbatch: error: Batch job submission failed: Unspecified error\n": (
        "slurm",
        "lua: you have no budget left; Unspecified error",
    ),
    "": ("slurm", "it gives no reason"),
}


@pytest.mark.parametrize(("said", "points_at", "reason"), [(said, *rest) for said, rest in SAID.items()])
def test_a_refusal_points_at_what_it_is_about(tmp_path: Path, said: str, points_at: str, reason: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("slurm:\n  partition: a\n  planning_partition: b\n  extra: {foo: 1}\n")
    places = {"slurm": "2:3", "partition": "2:14", "planning": "3:23", "foo": "4:16"}
    slurm = Slurm(partition="a", planning_partition="b", extra={"foo": 1})
    message = str(refusal(path, slurm, said))
    assert message.startswith(f"{path}:{places[points_at]}: SLURM refuses the job: {reason}; correct slurm")


@pytest.mark.parametrize(
    "reason",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
    ],
)
def test_no_answer_is_no_refusal(reason: str) -> None:
    error = refusal(Path("lab.yaml"), Slurm(), f"sbatch: error: Batch job submission failed: {reason}\n")
    assert isinstance(error, SlurmError)
    assert str(error) == f"SLURM does not answer: {reason}; try again later"


def test_a_file_of_the_catalog_is_not_to_be_corrected() -> None:
    error = refusal(catalog_path(Cluster, "laptop"), Slurm(), "sbatch: error: Invalid qos specification\n")
    assert isinstance(error, DocumentError)
    assert error.write.startswith("name a copy of this file in the budget and correct slurm.qos in the copy")


def test_a_job_that_may_start_on_fewer_nodes_asks_for_cpus_and_leaves_the_tasks_to_srun(
    tmp_path: Path,
) -> None:
    """SLURM else keeps the number of tasks that a job's first start had."""
    run = wanted()
    elastic = replace(run, order=order(4, fallback_layouts=(2,)))
    [script] = drafted(tmp_path, asked(2, min_nodes=1), elastic)
    said = options(script)
    assert {"#SBATCH --nodes=1-2", "#SBATCH --mincpus=2"} <= set(said)
    assert not any("ntasks" in line or "cpus-per-task" in line for line in said)
    [srun] = [line for line in script.text.splitlines() if line.startswith("srun ")]
    assert " --ntasks-per-node=2 " in srun
    [fixed] = drafted(tmp_path, asked(2), elastic)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2"} <= set(options(fixed))
