import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import choose
from model.mesh import Mesh
from model.transformer import Stage
from model.zero import AdamW
from runtime.checkpoint.format import load_checkpoint, weights_sha256
from runtime.data.batches import DataError, RunData, held_out_rows, training_rows
from runtime.data.corpus import CorpusError, load_corpus, tokens
from runtime.run_folder.folder import RunFolder
from runtime.train.loop import RunError, main, train
from runtime.train.process import RankInfo, StopRequest
from runtime.train.run_logger import outside_band
from specs.data import CorpusRef
from specs.exit_codes import BAD_INPUT, FAILED, NO_RETRY, OK, RESUME
from specs.plan import CurveBand
from specs.record import End, EvalLine, Incident, Start
from specs.run import Evaluation, Parent, RunSpec
from tests.support import samples
from tests.support.paths import ROOT
from tests.support.training import Ranks, corpus, opened, order, outcome, tiny_run, train_here


@pytest.fixture(scope="module")
def data(home: Path) -> CorpusRef:
    return corpus(home)


@pytest.fixture(scope="module")
def finished(home: Path, data: CorpusRef) -> RunFolder:
    """A finished run."""
    folder = opened(home, tiny_run(data))
    assert train_here(folder, home / "data") == OK
    return folder


def textbook_loss(stage: Stage, rows_BT: Tensor) -> float:
    """Mean cross-entropy, nats per token."""
    with torch.no_grad():
        logits_BSV = stage.logits(rows_BT[:, :-1]).double()
    return float(F.cross_entropy(logits_BSV.flatten(0, 1), rows_BT[:, 1:].reshape(-1)))


def model_of(run: RunSpec) -> tuple[Stage, AdamW]:
    mesh = Mesh()
    stage = Stage(run.model, precision=run.precision, mesh=mesh, kernels=choose("torch", "cpu"), device="cpu")
    return stage, AdamW(stage, mesh.dp, run.optim)


def test_a_run_leaves_a_complete_record(finished: RunFolder) -> None:
    run = finished.run()
    metrics, evals = finished.metrics(), finished.evals()
    assert [line.step for line in metrics] == list(range(1, 21))
    assert [line.tokens for line in metrics] == [4 * 32 * step for step in range(1, 21)]
    assert [line.lr for line in metrics] == [run.optim.lr(step) for step in range(1, 21)]
    assert [(line.step, line.sequences) for line in evals] == [(5, 6), (10, 6), (15, 6), (20, 9)]
    assert finished.timing()[-1].step == 20
    start, end = finished.records()
    assert isinstance(start, Start)
    assert (start.run, start.seal, start.from_step) == (run.fingerprint(), "5" * 64, 0)
    assert start.kernels
    assert isinstance(end, End)
    assert end == finished.end()
    assert (end.step, end.loss) == (20, evals[-1].loss)
    assert end.weights_sha256 == weights_sha256(finished.checkpoints / "step-00000020")
    assert metrics[-1].loss < metrics[0].loss


def test_the_loss_of_a_step_is_the_mean_over_its_batch(home: Path, finished: RunFolder) -> None:
    run = finished.run()
    stage, optimizer = model_of(run)
    optimizer.initialize(run.seed)
    text = tokens(home / "data", load_corpus(home / "data", run.data.corpus), "train")
    rows = torch.from_numpy(training_rows(text, run.model.context, run.seed, 0, run.optim.batch_sequences))
    assert finished.metrics()[0].loss == pytest.approx(textbook_loss(stage, rows), rel=1e-6)


def test_the_final_loss_is_that_of_the_weights_in_the_last_checkpoint(
    home: Path, finished: RunFolder
) -> None:
    run = finished.run()
    stage, optimizer = model_of(run)
    load_checkpoint(finished.checkpoints / "step-00000020", optimizer.boxes())
    optimizer.sync_parameters()
    text = tokens(home / "data", load_corpus(home / "data", run.data.corpus), "held_out")
    rows = torch.from_numpy(held_out_rows(text, run.model.context, 0, run.evaluation.final_sequences))
    end = finished.end()
    assert end is not None
    assert end.loss == pytest.approx(textbook_loss(stage, rows), rel=1e-6)


def masked_run(data: CorpusRef, **changes: Any) -> RunSpec:
    """A run whose attention stays within documents."""
    plain = tiny_run(data)
    model = plain.model.model_copy(update={"context": 128, "mean_attended_tokens": 100.0})
    return tiny_run(data, model=model, documents="masked", **changes)


def test_masked_documents_are_evaluated_as_each_alone(home: Path, data: CorpusRef) -> None:
    run = masked_run(data)
    folder = opened(home, run)
    assert train_here(folder, home / "data") == OK
    stage, optimizer = model_of(run)
    load_checkpoint(folder.checkpoints / "step-00000020", optimizer.boxes())
    optimizer.sync_parameters()
    corpus = load_corpus(home / "data", data.corpus)
    rows_BT = torch.from_numpy(held_out_rows(tokens(home / "data", corpus, "held_out"), 128, 0, 9))
    nats = count = 0.0
    for row_T in rows_BT:
        ends = [-1, *(row_T[:-1] == corpus.end_of_document).nonzero().flatten().tolist(), 128]
        for before, end in pairwise(ends):
            document_T = row_T[before + 1 : end + 1]
            if len(document_T) > 1:
                nats += float(stage.loss(document_T[None, :-1], document_T[None, 1:], 1).detach())
                count += len(document_T) - 1
    assert count < rows_BT[:, 1:].numel(), "some sequence has an end of a document in it"
    assert folder.evals()[-1].loss == pytest.approx(nats / count, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_each_row_is_read_once(
    home: Path, data: CorpusRef, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    rows: Counter[str] = Counter()

    def count(name: str) -> None:
        read = getattr(RunData, name)

        def counted(self: RunData, *at: Any) -> Any:
            found = read(self, *at)
            rows[name] += len(found)
            return found

        monkeypatch.setattr(RunData, name, counted)

    count("training_rows")
    count("held_out_rows")
    folder = opened(home / f"reads-{masked}", (masked_run if masked else tiny_run)(data))
    assert train_here(folder, home / "data") == OK
    assert rows == {"training_rows": 20 * 4, "held_out_rows": 3 * 6 + 9}


@pytest.mark.slow
def test_masked_documents_are_evaluated_on_fewer_sequences_than_ranks(home: Path, data: CorpusRef) -> None:
    run = masked_run(data, evaluation=Evaluation(every_steps=10, sequences=1, final_sequences=1))
    losses = []
    for dp in (1, 2):
        folder = opened(home / f"one-sequence-{dp}", run, order(run, dp=dp))
        assert Ranks(folder, home / "data", dp).join() == [OK] * dp
        losses.append([line.loss for line in folder.evals()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
def test_masked_documents_cut_over_ranks_differ_by_rounding(home: Path, data: CorpusRef) -> None:
    run = masked_run(data)
    folders = []
    for dp in (1, 2):
        folders.append(opened(home / f"masked-{dp}", run, order(run, dp=dp)))
        assert Ranks(folders[-1], home / "data", dp).join() == [OK] * dp
    one, two = ([line.loss for line in folder.metrics()] for folder in folders)
    assert two == pytest.approx(one, rel=1e-6)
    assert folders[1].evals()[-1].loss == pytest.approx(folders[0].evals()[-1].loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("dp", "micro_batch"), [(1, 1), (2, 2), (4, 1)])
def test_a_layout_changes_the_losses_only_by_rounding(
    home: Path, tmp_path: Path, finished: RunFolder, dp: int, micro_batch: int
) -> None:
    run = finished.run()
    folder = opened(tmp_path, run, order(run, dp=dp, micro_batch=micro_batch))
    assert Ranks(folder, home / "data", dp).join() == [OK] * dp
    losses = [line.loss for line in folder.metrics()]
    # 20 steps in fp32: 1e-4 is what rounding may grow to; another batch or learning rate differs by 1e-2 at once.
    assert losses == pytest.approx([line.loss for line in finished.metrics()], rel=1e-4)
    assert losses[0] == pytest.approx(finished.metrics()[0].loss, rel=1e-6)
    assert [line.loss for line in folder.evals()] == pytest.approx(
        [line.loss for line in finished.evals()], rel=1e-4
    )


def test_bf16_trains(home: Path, data: CorpusRef) -> None:
    folder = opened(home, tiny_run(data, precision="bf16"))
    assert train_here(folder, home / "data") == OK
    assert folder.metrics()[-1].loss < folder.metrics()[0].loss


def test_a_finished_run_is_left_alone_without_importing_torch(home: Path, finished: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    code = (
        "import sys; from runtime.train.loop import main; "
        f"status = main([{str(finished.path)!r}, '--data', {str(home / 'data')!r}]); "
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n"
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@pytest.mark.slow
def test_it_runs_as_a_program(home: Path, data: CorpusRef) -> None:
    folder = opened(home, tiny_run(data, steps=6, seed=1))
    argv = [sys.executable, "-W", "error", "-m", "runtime.train.loop", folder.path, "--data", home / "data"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (OK, "")
    assert folder.end() is not None


@pytest.mark.slow
def test_starting_and_saving_import_nothing_that_costs_seconds(home: Path, data: CorpusRef) -> None:
    run = tiny_run(data, steps=6, seed=12)
    folder = opened(home, run, order(run, every_steps=2))  # the one of step 4 waits for that of step 2
    code = (
        "import sys\n"
        "from runtime.train import run_logger\n"
        "from runtime.train.loop import main\n"
        "costly = {'sympy', 'scipy', 'tensorboard.compat.tensorflow_stub', 'torch._dynamo', 'torch._inductor',\n"
        "          'torch.utils.tensorboard', 'torch.distributed.checkpoint', 'tokenizers'}\n"
        "seen = []\n"
        "step = run_logger.RunLogger.step\n"
        "run_logger.RunLogger.step = lambda *a, **k: (seen.append(costly & set(sys.modules)), step(*a, **k))[1]\n"
        f"assert main([{str(folder.path)!r}, '--data', {str(home / 'data')!r}]) == 0\n"
        "print(seen[0], seen[-1] & {'sympy', 'torch.distributed.checkpoint'}, len(seen))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() set() 6"


def refusal(home: Path, run: RunSpec, ranks: int = 1, **how: Any) -> str:
    """Why a run is refused; nothing is recorded."""
    folder = opened(home, run, order(run, **how))
    with pytest.raises((RunError, CorpusError, DataError)) as refused:
        train(folder, home / "data", RankInfo(0, 0, ranks), StopRequest())
    assert not folder.record_jsonl.exists()
    assert not folder.metrics_jsonl.exists()
    return str(refused.value)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(home: Path, data: CorpusRef) -> None:
    run = tiny_run(data, seed=2)
    assert "not a multiple of dp x micro-batch = 1 x 3" in refusal(home, run, micro_batch=3)
    assert "has digest" in refusal(home, tiny_run(CorpusRef(corpus=data.corpus, digest="0" * 64)))
    assert "planned on None; plan the budget again" in refusal(
        home, tiny_run(CorpusRef(corpus=data.corpus, digest=None))
    )
    assert "isoplan data" in refusal(home, tiny_run(CorpusRef(corpus="0" * 16, digest=data.digest)))
    narrow = samples.model(width=16, ffn=32, context=32, vocab=200)
    assert "256 token ids, more than the model's vocabulary of 200" in refusal(
        home, tiny_run(data, model=narrow)
    )
    branch = Parent(run="0" * 16, step=3)
    assert "branches off another run cannot be trained yet; write parent: null" in refusal(
        home, tiny_run(data, parent=branch)
    )
    large = Evaluation(every_steps=5, sequences=6, final_sequences=10**6)
    assert "the evaluation needs 1000000; lower" in refusal(home, tiny_run(data, evaluation=large))


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ({"pp": 3}, "3 pipeline stages are more than the 2 layers"),
        ({"tp": 2}, "kv_heads 1 is not a multiple of tp 2"),
        ({"pp": 2, "stage_layers": (2, 1)}, "are not 2 stages that add up to 2 layers"),
    ],
)
def test_layouts_that_cannot_be_are_refused(
    home: Path, data: CorpusRef, cut: dict[str, Any], said: str
) -> None:
    assert said in refusal(home, tiny_run(data, seed=3), ranks=3, **cut)


def test_too_few_ranks_for_any_layout_are_refused(home: Path, data: CorpusRef) -> None:
    """With how many there are, and how many the smallest layout needs."""
    run, half = tiny_run(data, seed=3), samples.layout(dp=2)
    assert "1 rank started, but the smallest layout needs 4" in refusal(home, run, dp=4)
    assert "1 rank started, but the smallest layout needs 2" in refusal(
        home, run, dp=4, fallback_layouts=(half,)
    )


def test_an_order_for_another_run_is_refused(home: Path, data: CorpusRef) -> None:
    run = tiny_run(data, seed=4)
    folder = opened(home, run, order(tiny_run(data, seed=5)))
    with pytest.raises(RunError, match=r"order\.json is for run .*; rerun the command that started it"):
        train_here(folder, home / "data")


def test_bad_input_is_one_line_and_status_2(
    home: Path, data: CorpusRef, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = opened(home, tiny_run(data, seed=6))
    folder.order_json.write_text("{}")
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        assert main([str(folder.path), "--data", str(home / "data")]) == BAD_INPUT
        folder.order_json.write_text(order(tiny_run(data, seed=5)).canonical_json())
        assert main([str(folder.path), "--data", str(home / "data")]) == NO_RETRY
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"DocumentError: {folder.order_json}:1:1: ")
    assert second.startswith("RunError: order.json is for run")


def test_a_run_that_diverges_fails_and_says_where(home: Path, data: CorpusRef) -> None:
    fast = samples.optim(steps=20, batch_sequences=4, peak_lr=1e25, warmup_steps=1, milestones=())
    run = tiny_run(data, optim=fast, guard=None)
    folder = opened(home, run)
    for attempt in (1, 2):
        with pytest.raises(
            RunError, match=r"not finite at step \d+: .*; training diverged; plan with a lower learning rate"
        ):
            train_here(folder, home / "data")
        incidents = [line for line in folder.records() if isinstance(line, Incident)]
        assert [line.what for line in incidents] == ["non_finite"] * attempt
        assert incidents[-1].step == folder.metrics()[-1].step
    assert folder.end() is None
    assert not folder.checkpoints.exists()


def band(losses: dict[int, tuple[float, float]]) -> CurveBand:
    """A forecast curve with these 95 % bands."""
    low, high = (tuple(bounds[side] for bounds in losses.values()) for side in (0, 1))
    return CurveBand(step=tuple(losses), median=low, low_50=low, high_50=high, low_95=low, high_95=high)


def test_leaving_the_band_raises_one_alarm_an_excursion(
    home: Path, data: CorpusRef, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(data, steps=30, seed=7)
    inside, above, below = (0.0, 99.0), (0.0, 0.1), (98.0, 99.0)
    curve = band({5: inside, 10: above, 15: below, 20: inside, 25: above})  # 30 is not in the forecast
    folder = opened(home, run, order(run, curve=curve))
    assert train_here(folder, home / "data") == OK
    incidents = [line for line in folder.records() if isinstance(line, Incident)]
    assert [(line.what, line.step) for line in incidents] == [("outside_band", 10), ("outside_band", 25)]
    assert "at step 10 is above the 95 % band 0.0000 to 0.1000" in incidents[0].message
    assert capsys.readouterr().out.count("outside_band: held-out loss") == 2


def test_the_band_includes_its_ends() -> None:
    curve = band({5: (2.0, 3.0)})
    lines = {loss: EvalLine(step=5, tokens=1, loss=loss, sequences=1) for loss in (1.9, 2.0, 3.0, 3.1)}
    assert [loss for loss, line in lines.items() if outside_band(curve, line)] == [1.9, 3.1]
    assert outside_band(None, lines[1.9]) is None


def wait_for_step(folder: RunFolder, step: int) -> None:
    """Until a line of this step, or a checkpoint, is there."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(int(path.name[5:]) >= step for path in folder.checkpoints.glob("step-*")):
            return
        time.sleep(0.005)
    raise AssertionError("the run does not get there")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_asks_to_be_resumed(
    home: Path, data: CorpusRef, tmp_path: Path, number: signal.Signals
) -> None:
    run = tiny_run(
        data, steps=5000, seed=8, evaluation=Evaluation(every_steps=1000, sequences=6, final_sequences=6)
    )
    folder = opened(tmp_path, run, order(run, every_s=0.2))
    ranks = Ranks(folder, home / "data")
    wait_for_step(folder, 1)
    os.kill(ranks.processes[0].pid or 0, number)
    assert ranks.join() == [RESUME]
    last = folder.records()[-1]
    assert isinstance(last, Incident)
    assert last.what == "interrupted"
    assert last.step == folder.metrics()[-1].step
    assert last.message.endswith(f"of 5000 after a stop signal ({number.name})")
    assert (folder.checkpoints / f"step-{last.step:08d}").is_dir()


@pytest.mark.slow
def test_one_rank_that_is_signalled_takes_the_others_along(
    home: Path, data: CorpusRef, tmp_path: Path
) -> None:
    run = tiny_run(data, steps=5000, seed=9)
    folder = opened(tmp_path, run, order(run, dp=2, every_s=0.2))
    ranks = Ranks(folder, home / "data", 2)
    wait_for_step(folder, 1)
    os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)
    assert ranks.join() == [RESUME, RESUME]
    [*_, last] = folder.records()
    assert isinstance(last, Incident)
    assert last.message.endswith("(received by another rank)")
    here = f"process {ranks.processes[1].pid} on {socket.gethostname()}"
    assert (folder.log / "rank-1.txt").read_text() == f"rank 1 of 2, {here}: joins the process group\n"
    assert (
        len(
            json.loads((sorted(folder.checkpoints.glob("step-*"))[-1] / "manifest.json").read_text())["files"]
        )
        == 2
    )


@pytest.mark.slow
def test_what_could_not_be_saved_is_not_said_to_be(home: Path, data: CorpusRef, tmp_path: Path) -> None:
    run = tiny_run(data, steps=5000, seed=13)
    folder = opened(tmp_path, run, order(run, every_s=3600))
    folder.checkpoints.touch()  # a file, where a folder is to be made
    ranks = Ranks(folder, home / "data")
    while len(folder.metrics()) < 5:
        assert ranks.processes[0].is_alive()
        time.sleep(0.05)
    os.kill(ranks.processes[0].pid or 0, signal.SIGTERM)
    assert ranks.join() == [FAILED]
    [last] = [line for line in folder.records() if isinstance(line, Incident)]
    assert last.what == "unsaved_checkpoint"
    assert "rerun; the run resumes from the latest checkpoint" in (folder.log / "rank-0.txt").read_text()


def test_a_folder_that_was_copied_while_it_trained_goes_on(
    home: Path, data: CorpusRef, tmp_path: Path
) -> None:
    """The lines of steps 7 to 10 were written, and the checkpoint saved, after the files had been copied."""
    run = tiny_run(data)
    folder = opened(tmp_path, run, order(run, every_steps=10))
    assert train_here(folder, home / "data") == OK
    whole, weights = folder.metrics(), outcome(folder)[2]
    shutil.rmtree(folder.checkpoints / "step-00000020")
    for path, lines in ((folder.metrics_jsonl, 6), (folder.evals_jsonl, 1), (folder.record_jsonl, 1)):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    assert train_here(folder, home / "data") == OK
    assert folder.metrics() == whole[:6] + whole[10:]
    assert outcome(folder)[2] == weights
    [_, resumed] = [line for line in folder.records() if isinstance(line, Start)]
    assert (resumed.from_step, list(resumed.unrecorded)) == (10, [7, 8, 9, 10])


def test_what_cannot_be_read_just_now_may_be_later(home: Path, data: CorpusRef, tmp_path: Path) -> None:
    """A file system that is away is no bad input, which no other start would change."""
    folder = opened(tmp_path, tiny_run(data, seed=14))
    folder.order_json.unlink()
    ranks = Ranks(folder, home / "data")
    assert ranks.join() == [FAILED]


def test_a_signal_before_the_first_step_is_not_lost(home: Path, data: CorpusRef, tmp_path: Path) -> None:
    folder = opened(tmp_path, tiny_run(data, steps=5000, seed=10))
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    assert train(folder, home / "data", RankInfo(0, 0, 1), stop) == RESUME
    assert folder.metrics() == []
    assert not folder.checkpoints.exists()


@pytest.mark.slow
def test_a_signal_while_torch_is_imported_does_not_kill(home: Path, data: CorpusRef, tmp_path: Path) -> None:
    folder = opened(tmp_path, tiny_run(data, steps=5000, seed=11))
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from runtime.train.loop import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = [sys.executable, "-c", code, folder.path, "--data", home / "data"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (RESUME, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_rank_that_is_done_dies_of_no_signal(
    home: Path, finished: RunFolder, number: signal.Signals
) -> None:
    code = (
        "import os, signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid()):\n"
        f"        kill(me, {number.value})\n"
        "late = Late()\n"  # dropped after Python has put the handlers back
        "import runpy\n"
        "runpy.run_module('runtime.train.rank', run_name='__main__')\n"
    )
    argv = [sys.executable, "-c", code, finished.path, "--data", home / "data"]
    lifeline, launcher = os.pipe()
    done = subprocess.run(argv, cwd=ROOT, stdin=lifeline, capture_output=True, text=True, check=False)
    os.close(lifeline)
    os.close(launcher)
    assert (done.returncode, done.stderr) == (OK, "")
