import random
import time
from pathlib import Path

import pytest

from runtime.run_folder.folder import RunFolder
from specs.data import CorpusRef
from specs.exit_codes import OK
from specs.record import Incident, Start
from specs.run import Evaluation, RunSpec
from tests.support import samples
from tests.support.training import Outcome, Ranks, corpus, opened, order, outcome, tiny_run

pytestmark = pytest.mark.slow

STEPS = 120


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    data: CorpusRef = corpus(home)
    return tiny_run(data, steps=STEPS, evaluation=Evaluation(every_steps=10, sequences=6, final_sequences=9))


@pytest.fixture(scope="module")
def uninterrupted(home: Path, run: RunSpec) -> dict[int, Outcome]:
    """What the run gives when nothing happens to it, by the number of ranks."""
    found = {}
    for dp in (1, 2):
        folder = opened(home / f"whole-{dp}", run, order(run, dp=dp))
        assert Ranks(folder, home / "data", dp).join() == [OK] * dp
        found[dp] = outcome(folder)
    return found


def wait_for_start(folder: RunFolder, ranks: Ranks, seen: int) -> None:
    """Until this segment has written its Start record."""
    while len(folder.records()) <= seen and ranks.processes[0].is_alive():
        time.sleep(0.002)


def train_through_kills(folder: RunFolder, data: Path, dp: int, kills: int, seed: int) -> None:
    """Train, with SIGKILL to every rank at random times (one in four before the first step), then to the end."""
    chance = random.Random(seed)
    for _ in range(kills):
        seen = len(folder.records())
        ranks = Ranks(folder, data, dp)
        if chance.random() < 0.75:
            wait_for_start(folder, ranks, seen)
        time.sleep(chance.uniform(0.0, 0.3))
        ranks.kill()
    assert set(Ranks(folder, data, dp).join()) == {OK}
    assert sum(isinstance(line, Start) for line in folder.records()) > 1, "it was never killed in the middle"


@pytest.mark.parametrize(
    ("dp", "every_s"),
    [
        (1, 0.05),
        (2, 1e-9),
        pytest.param(1, 1e-9, marks=pytest.mark.soak),
        pytest.param(2, 0.05, marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome], dp: int, every_s: float
) -> None:
    folder = opened(tmp_path, run, order(run, dp=dp, every_s=every_s))
    train_through_kills(folder, home / "data", dp, kills=4, seed=round(dp + 1000 * every_s))
    assert outcome(folder) == uninterrupted[dp]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_two_ranks_killed_many_times_end_as_if_nothing_had_happened(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome], seed: int
) -> None:
    folder = opened(tmp_path, run, order(run, dp=2, every_s=0.02))
    train_through_kills(folder, home / "data", 2, kills=10, seed=seed)
    assert outcome(folder) == uninterrupted[2]


@pytest.mark.parametrize("when", ["while saving", "after saving", "before the end record"])
def test_a_run_killed_at_a_chosen_moment(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome], when: str
) -> None:
    folder = opened(tmp_path, run, order(run, every_s=0.02))
    ranks = Ranks(folder, home / "data")
    sign = {
        "while saving": ".step-*.part",
        "after saving": "step-*",
        "before the end record": f"step-{STEPS:08d}",
    }[when]
    while not list(folder.checkpoints.glob(sign)):
        assert ranks.processes[0].is_alive()
    ranks.kill()
    assert Ranks(folder, home / "data").join() == [OK]
    assert outcome(folder) == uninterrupted[1]
    resumed = [line.from_step > 0 for line in folder.records() if isinstance(line, Start)][1:]
    assert all(resumed) or when == "while saving"


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome]
) -> None:
    folder = opened(tmp_path, run, order(run, every_s=1e-9))
    ranks = Ranks(folder, home / "data")
    while len(list(folder.checkpoints.glob("step-*"))) < 2:
        assert ranks.processes[0].is_alive()
    ranks.kill()
    before, newest = sorted(folder.checkpoints.glob("step-*"))[-2:]
    weights = newest / "rank-00000.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Ranks(folder, home / "data").join() == [OK]
    assert outcome(folder) == uninterrupted[1]
    start = [line for line in folder.records() if isinstance(line, Start)][-1]
    (incident,) = [line for line in folder.records() if isinstance(line, Incident)]
    assert start.from_step == int(before.name[5:])
    assert incident.what == "damaged_checkpoint"
    assert newest.name in incident.message


def test_a_run_goes_on_under_another_number_of_ranks(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome]
) -> None:
    folder = opened(tmp_path, run)
    for dp in (2, 1, 2):
        opened(tmp_path, run, order(run, dp=dp, micro_batch=1, every_s=1e-9))
        seen = len(folder.records())
        ranks = Ranks(folder, home / "data", dp)
        wait_for_start(folder, ranks, seen)
        time.sleep(0.1)
        ranks.kill()
    opened(tmp_path, run, order(run))
    assert Ranks(folder, home / "data").join() == [OK]
    assert len({line.execution.layout.dp for line in folder.records() if isinstance(line, Start)}) == 2
    reference = opened(home / "whole-1", run)
    # 120 steps in fp32 under layouts that sum in different orders: 1e-3 is what rounding grew to here.
    assert [line.loss for line in folder.metrics()] == pytest.approx(
        [line.loss for line in reference.metrics()], rel=1e-3
    )
    assert [line.step for line in folder.metrics()] == list(range(1, STEPS + 1))


def test_fewer_ranks_take_the_layout_that_is_planned_for_them(
    home: Path, tmp_path: Path, run: RunSpec, uninterrupted: dict[int, Outcome]
) -> None:
    """Three instead of four: two train, and the one that is not needed leaves at once."""
    half = samples.layout(dp=2, micro_batch_sequences=2)
    planned = order(run, dp=4, micro_batch=1, every_steps=20, fallback_layouts=(half, samples.layout(dp=1)))
    folder = opened(tmp_path, run, planned)
    four = Ranks(folder, home / "data", 4)
    while not list(folder.checkpoints.glob("step-*")):
        assert four.processes[0].is_alive()
    four.kill()
    assert Ranks(folder, home / "data", 3).join() == [OK] * 3
    first, second = (line for line in folder.records() if isinstance(line, Start))
    assert first.execution == planned.execution
    assert second.execution == planned.execution.model_copy(update={"layout": half})
    assert second.from_step > 0
    events = [path.name for path in sorted(folder.tensorboard.iterdir())]
    assert set(events) <= {"events.out.tfevents.000001", "events.out.tfevents.000002"}
    assert events[-1].endswith("2")  # the first start may have been killed before its first lines
    last = folder.timing()[-1]
    assert planned.peak_flop_per_s is not None
    assert last.mfu == pytest.approx(
        last.tokens_per_s * run.model.mfu_flop_per_token / (2 * planned.peak_flop_per_s)
    )
    assert (folder.log / "rank-2.txt").read_text().endswith("rank 2 of 3 exits: the layout uses 2 ranks\n")
    reference = opened(home / "whole-1", run)
    # As for any other layout above.
    assert [line.loss for line in folder.metrics()] == pytest.approx(
        [line.loss for line in reference.metrics()], rel=1e-3
    )
    assert [line.step for line in folder.metrics()] == list(range(1, STEPS + 1))
