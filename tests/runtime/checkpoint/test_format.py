import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from model.parameters import Piece
from model.zero import Box
from runtime.checkpoint.format import (
    CheckpointError,
    CheckpointManifest,
    commit,
    discard,
    find_latest_intact,
    load_checkpoint,
    read_manifest,
    remove_leftovers,
    stage,
    usable_manifest,
    weights_sha256,
)
from runtime.checkpoint.shards import Shard, digest_of, write_shards
from specs.checkpoint_retention import Retention
from specs.document.files import DocumentError
from specs.record import SkippedRange
from specs.spike_guard import SpikeGuardState
from tests.support import samples

RUN = samples.run()
SHAPES = {"embedding": (7, 3), "norm": (5,), "head": (4, 6)}

Cuts = dict[str, tuple[list[int], list[int]]]
"""Where the rows and columns of each tensor are cut."""


def state(step: int) -> dict[str, list[Tensor]]:
    """Master weights and moments of every tensor, all different."""
    generator = torch.Generator().manual_seed(step)
    return {
        name: [torch.randn(shape, generator=generator) for _ in range(3)] for name, shape in SHAPES.items()
    }


def boxes_by_rank(whole: dict[str, list[Tensor]], cuts: Cuts) -> list[list[Box]]:
    """The tensors cut as told, and dealt out to as many ranks as that takes: each has one box of a tensor at most."""
    found: list[list[Box]] = []
    for name, tensors in whole.items():
        shape = SHAPES[name]
        rows, cols = cuts[name]
        rank = 0
        for top, bottom in pairwise([0, *sorted(rows), shape[0]]):
            for left, right in pairwise([0, *sorted(cols), shape[1] if len(shape) == 2 else 1]):
                if top == bottom or left == right:
                    continue
                window = (slice(top, bottom), slice(left, right))[: len(shape)]
                piece = Piece(name, shape, top, left, bottom - top, right - left)
                if rank == len(found):
                    found.append([])
                found[rank].append(Box(piece, *(tensor[window] for tensor in tensors)))
                rank += 1
    return found


UNCUT: Cuts = {name: ([], []) for name in SHAPES}
TWO: Cuts = {"embedding": ([3], []), "norm": ([2], []), "head": ([1], [])}


def manifest(step: int, **changes: Any) -> CheckpointManifest:
    plain: dict[str, Any] = {
        "run_fingerprint": RUN.fingerprint(),
        "run": RUN,
        "step": step,
        "updates": step,
        "tokens": step * RUN.batch_tokens,
        "loss": None,
        "guard": SpikeGuardState(),
        "skipped": (),
        "layout": samples.layout(),
        "versions": {},
    }
    return CheckpointManifest(**(plain | changes))


def save(
    folder: Path,
    step: int,
    cuts: Cuts = UNCUT,
    retention: Retention | None = None,
    damaged: set[int] | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint of `state(step)`, by as many ranks as the cuts ask for."""
    by_rank = boxes_by_rank(state(step), cuts)
    for rank, boxes in enumerate(by_rank):
        stage(folder, step, rank, boxes)
    commit(folder, manifest(step, **changes), len(by_rank), retention or Retention(), damaged or ())
    return folder / f"step-{step:08d}"


def loaded(path: Path, cuts: Cuts = UNCUT) -> dict[str, list[Tensor]]:
    """What as many ranks read back, put together."""
    shapes = state(1)
    whole = {name: [torch.full_like(tensor, torch.nan) for tensor in parts] for name, parts in shapes.items()}
    for boxes in boxes_by_rank(whole, cuts):
        load_checkpoint(path, boxes)
    return whole


def assert_same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> None:
    for name in SHAPES:
        for a, b in zip(one[name], other[name], strict=True):
            assert torch.equal(a, b), name


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def cuts() -> st.SearchStrategy[Cuts]:
    return st.fixed_dictionaries(
        {
            name: st.tuples(
                st.lists(st.integers(0, shape[0]), max_size=3),
                st.lists(st.integers(0, shape[1]), max_size=2) if len(shape) == 2 else st.just([]),
            )
            for name, shape in SHAPES.items()
        }
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=cuts(), read=cuts())
def test_any_layout_reads_what_any_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, written: Cuts, read: Cuts
) -> None:
    path = save(tmp_path_factory.mktemp("checkpoints"), 3, written)
    assert_same(loaded(path, read), state(3))


def test_torch_reads_the_files_by_itself(tmp_path: Path) -> None:
    """And safetensors does; values of several pieces and of none too many."""
    # Late: half a second, in each process that collects tests.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    path = tmp_path / "rank-00000.safetensors"
    values = {"a": torch.randn(3, 5), "b": torch.randn(2**20 + 1), "c": torch.randn(7)}
    shards = {"a": Shard(values["a"], (3, 5), (0, 0)), "b": Shard(values["b"], (2**20 + 1,), (0,))}
    shards["c"] = Shard(values["c"][:4], (7,), (0,))
    assert write_shards(path, shards) == digest_of(path)
    write_shards(tmp_path / "rank-00001.safetensors", {"c": Shard(values["c"][4:], (7,), (4,))})
    assert torch.equal(load_file(path)["b"], values["b"])
    into = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is alone
        dcp.load(into, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, tensor in values.items():
        assert torch.equal(into[name], tensor)


def test_the_digest_of_the_weights_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    digest = weights_sha256(save(tmp_path / "one", 3))
    cut: Cuts = {"embedding": ([2], [1]), "norm": ([2, 4], []), "head": ([], [3])}
    assert digest == weights_sha256(save(tmp_path / "three", 3, cut))
    assert digest != weights_sha256(save(tmp_path / "other", 4))


def test_the_newest_whole_one_is_used(tmp_path: Path) -> None:
    assert find_latest_intact(tmp_path / "absent", RUN, ()) == (None, [])
    assert find_latest_intact(tmp_path, RUN, ()) == (None, [])
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    assert find_latest_intact(tmp_path, RUN, ()) == (newest, [])


@pytest.mark.parametrize(
    ("retention", "stay"),
    [
        (Retention(), [90, 100]),
        (Retention(newest=1), [100]),
        (Retention(newest=3, period_steps=40), [40, 80, 90, 100]),
        (Retention(newest=1, best=True), [30, 100]),
        (Retention(newest=1, best=True, period_steps=50), [30, 50, 100]),
    ],
)
def test_what_is_to_be_kept_stays_and_nothing_else(
    tmp_path: Path, retention: Retention, stay: list[int]
) -> None:
    for step in range(10, 101, 10):
        save(tmp_path, step, retention=retention, loss=2.0 + abs(step - 30) / 100 if step > 10 else None)
    assert steps_in(tmp_path) == stay


@given(
    st.dictionaries(st.integers(1, 60), st.none() | st.floats(0, 9), min_size=1),
    st.integers(1, 5),
    st.none() | st.integers(1, 9),
    st.booleans(),
)
def test_the_newest_always_stays(
    losses: dict[int, float | None], newest: int, every: int | None, best: bool
) -> None:
    kept = Retention(newest=newest, period_steps=every, best=best).kept(losses)
    assert set(sorted(losses)[-newest:]) <= kept <= set(losses)
    assert len(kept) + 1 <= Retention(newest=newest, period_steps=every, best=best).max_checkpoints(
        max(losses)
    )
    measured = [loss for loss in losses.values() if loss is not None]
    if best and measured:
        assert min(measured) in {losses[step] for step in kept}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


ONE, OTHER = "rank-00000.safetensors", "rank-00001.safetensors"

DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped byte": lambda path: flip(path / OTHER),
    "a cut file": lambda path: os.truncate(path / ONE, 100),
    "an empty file": lambda path: os.truncate(path / ONE, 0),
    "a lost file": lambda path: (path / OTHER).unlink(),
    "a folder for a file": lambda path: ((path / OTHER).unlink(), (path / OTHER).mkdir()),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 80),
    "a manifest that is no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"),
    "a manifest of something else": lambda path: (path / "manifest.json").write_text('{"kind": "plan"}'),
    "a file too many": lambda path: shutil.copy(path / ONE, path / "rank-00009.safetensors"),
    "half deleted": lambda path: ((path / "manifest.json").unlink(), (path / ONE).unlink()),
    "all deleted": lambda path: [file.unlink() for file in path.iterdir()],
    "a file for the folder": lambda path: (shutil.rmtree(path), path.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before, newest = save(tmp_path, 5, TWO), save(tmp_path, 10, TWO)
    damage(newest)
    path, problems = find_latest_intact(tmp_path, RUN, ())
    assert path == before
    assert len(problems) == 1
    assert "step-00000010" in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_corruption_is_ever_resumed_from(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Of any file of the newest checkpoint: bytes changed, cut out, added. The one before it is found whole."""
    folder = tmp_path_factory.mktemp("checkpoints")
    before, newest = save(folder, 5, TWO), save(folder, 10, TWO)
    name = data.draw(st.sampled_from(sorted(path.name for path in newest.iterdir())))
    content = (newest / name).read_bytes()
    first = data.draw(st.integers(0, len(content) - 1))
    last = data.draw(st.integers(first, min(len(content), first + 40)))
    changed = content[:first] + data.draw(st.binary(max_size=40)) + content[last:]
    (newest / name).write_bytes(changed)
    try:
        path, problems = find_latest_intact(folder, RUN, ())
    except DocumentError:  # a manifest that now says that it is another run's: a person has to look
        assert name == "manifest.json"
        return
    if path == newest:  # its manifest says the same in other words, or nothing has changed
        assert name == "manifest.json" or changed == content
        assert_same(loaded(newest), state(10))
        return
    assert path == before
    assert len(problems) == 1
    assert_same(loaded(before), state(5))
    newer = save(folder, 11, TWO, damaged={10})
    assert sorted(folder.iterdir()) == [before, newer]


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    DAMAGE["no manifest"](tmp_path / "step-00000010")
    save(tmp_path, 7)
    assert steps_in(tmp_path) == [5, 7]
    newest = save(tmp_path, 10)
    assert find_latest_intact(tmp_path, RUN, ()) == (newest, [])


def test_one_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 10)
    other = RUN.model_copy(update={"seed": 1, "optim": samples.optim(peak_lr=0.001)})
    with pytest.raises(
        DocumentError, match=r"another run, .* differs in optim.peak_lr, seed; move"
    ) as refused:
        find_latest_intact(tmp_path, other, ())
    assert str(path / "manifest.json") in str(refused.value)
    assert steps_in(tmp_path) == [5, 10]


def test_one_under_another_name_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 5).rename(tmp_path / "step-00000009")
    path, problems = find_latest_intact(tmp_path, RUN, ())
    assert path is None
    assert problems == [
        f"{tmp_path / 'step-00000009'} holds the checkpoint of step 5, not of the step in its name"
    ]


def test_other_things_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in (
        "step-notes",
        "step-5",
        "step-\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2",
        "readme.txt",
    ):
        (tmp_path / name).write_text("mine")
    path = save(tmp_path, 5)
    save(tmp_path, 10, retention=Retention(newest=1))
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 5


def test_what_a_run_has_given_up_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    given_up = SkippedRange(step=12, to_step=5, batches=12)
    assert find_latest_intact(tmp_path, RUN, (given_up,))[0] == tmp_path / "step-00000005"
    after = save(tmp_path, 8, skipped=(given_up,))
    assert find_latest_intact(tmp_path, RUN, (given_up,))[0] == after
    assert steps_in(tmp_path) == [5, 8]
    again = SkippedRange(step=9, to_step=5, batches=16)
    assert not usable_manifest(after, RUN, (given_up, again))


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    for name in (".step-00000010.part", ".step-00000003.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ONE).write_bytes(b"half")
    assert find_latest_intact(tmp_path, RUN, ()) == (path, [])
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    remove_leftovers(tmp_path / "absent")


def test_what_is_not_to_be_leaves_nothing(tmp_path: Path) -> None:
    stage(tmp_path, 5, 0, boxes_by_rank(state(5), UNCUT)[0])
    discard(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []
    discard(tmp_path, 5)


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, 5) / "manifest.json"
    plain = json.loads(path.read_text())
    plain["files"]["../../secret"] = "0" * 64
    path.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="has no readable manifest"):
        read_manifest(path.parent)


def test_values_that_no_file_holds_are_missed(tmp_path: Path) -> None:
    path = save(tmp_path, 5, TWO)
    wide = Piece("norm", (9,), 0, 0, 9, 1)
    missing = Piece("bias", (2,), 0, 0, 2, 1)
    for piece, message in (
        (wide, r"has master.norm with shape \(5,\)"),
        (missing, "has no tensor master.bias"),
    ):
        box = Box(piece, *(torch.zeros(piece.rows) for _ in range(3)))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path, [box])
    (path / ONE).unlink()
    with pytest.raises(CheckpointError, match=r"has only 12 of the 21 values of master.embedding"):
        loaded(path)


def test_files_hold_tensors_and_json_alone_and_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = save(tmp_path, 5, TWO)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", ONE, OTHER]

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    (path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    assert_same(loaded(path), state(5))
    assert find_latest_intact(tmp_path, RUN, ())[0] == path
    (path / ONE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        loaded(path)
    assert not (tmp_path / "executed").exists()
