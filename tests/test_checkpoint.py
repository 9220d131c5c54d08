import json
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.mesh import Axis
from model.parameters import Piece
from model.zero import Box
from runtime import checkpoint
from runtime.checkpoint import CheckpointError, load_checkpoint, newest_whole, save_checkpoint, weights_sha256
from tests import samples

RUN = samples.run().fingerprint()
CPU = torch.device("cpu")
SHAPES = {"embedding": (7, 3), "norm": (5,), "head": (4, 6)}

Cuts = dict[str, tuple[list[int], list[int]]]
"""Where the rows and columns of each tensor are cut."""


class Ranks:
    """Stands for the collectives of ranks that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.values: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size)

    def sum_over(self, x: Tensor, axis: Axis) -> Tensor:
        self.values[axis.rank] = x
        self.barrier.wait(10)
        total = torch.stack(self.values).sum(0)
        self.barrier.wait(10)
        return total

    def run(self, work: Callable[[Axis], None]) -> None:
        size = len(self.values)
        threads = [threading.Thread(target=work, args=(Axis(size, rank),)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def state(step: int) -> dict[str, list[Tensor]]:
    """Master weights and moments of every tensor, all different."""
    generator = torch.Generator().manual_seed(step)
    return {
        name: [torch.randn(shape, generator=generator) for _ in range(3)] for name, shape in SHAPES.items()
    }


def boxes_of(whole: dict[str, list[Tensor]], rank: int, ranks: int, cuts: Cuts) -> list[Box]:
    """This rank's boxes: the tensors cut as told, dealt out in turn."""
    found = []
    for name, tensors in whole.items():
        shape = SHAPES[name]
        rows, cols = cuts[name]
        for top, bottom in pairwise([0, *sorted(rows), shape[0]]):
            for left, right in pairwise([0, *sorted(cols), shape[1] if len(shape) == 2 else 1]):
                window = (slice(top, bottom), slice(left, right))[: len(shape)]
                piece = Piece(name, shape, top, left, bottom - top, right - left)
                found.append(Box(piece, *(tensor[window] for tensor in tensors)))
    return [box for box in found[rank::ranks] if box.piece.rows and box.piece.cols]


UNCUT: Cuts = {name: ([], []) for name in SHAPES}


def save(folder: Path, step: int, ranks: int = 1, cuts: Cuts = UNCUT) -> None:
    """A checkpoint of `state(step)` by as many ranks."""
    others = Ranks(ranks)
    layout = samples.layout(dp=ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "sum_over", others.sum_over)
        others.run(
            lambda axis: save_checkpoint(
                folder, RUN, step, layout, boxes_of(state(step), axis.rank, ranks, cuts), axis, CPU
            )
        )


def loaded(folder: Path, step: int, ranks: int = 1, cuts: Cuts = UNCUT) -> dict[str, list[Tensor]]:
    """What as many ranks read back, put together."""
    whole = {
        name: [torch.full_like(tensor, torch.nan) for tensor in parts] for name, parts in state(step).items()
    }
    for rank in range(ranks):
        load_checkpoint(folder, step, boxes_of(whole, rank, ranks, cuts))
    return whole


def assert_same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> None:
    for name in SHAPES:
        for a, b in zip(one[name], other[name], strict=True):
            assert torch.equal(a, b), name


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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=cuts(), writers=st.integers(1, 3), read=cuts(), readers=st.integers(1, 3))
def test_any_layout_reads_what_any_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, written: Cuts, writers: int, read: Cuts, readers: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 3, writers, written)
    assert_same(loaded(folder, 3, readers, read), state(3))


def test_the_digest_of_the_weights_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    save(tmp_path / "one", 3)
    save(tmp_path / "three", 3, 3, {"embedding": ([2], [1]), "norm": ([2, 4], []), "head": ([], [3])})
    save(tmp_path / "other", 4)
    digest = weights_sha256(tmp_path / "one", 3)
    assert digest == weights_sha256(tmp_path / "three", 3)
    assert digest != weights_sha256(tmp_path / "other", 4)


def test_the_newest_two_stay(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]


def test_the_newest_whole_one_is_used(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "absent", RUN) == (None, [])
    assert newest_whole(tmp_path, RUN) == (None, [])
    save(tmp_path, 5)
    save(tmp_path, 10)
    assert newest_whole(tmp_path, RUN) == (tmp_path / "step-00000010", [])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped byte": lambda path: flip(path / "rank-00001.safetensors"),
    "a cut file": lambda path: os.truncate(path / "rank-00000.safetensors", 100),
    "an empty file": lambda path: os.truncate(path / "rank-00000.safetensors", 0),
    "a lost file": lambda path: (path / "rank-00001.safetensors").unlink(),
    "a folder for a file": lambda path: (
        (path / "rank-00001.safetensors").unlink(),
        (path / "rank-00001.safetensors").mkdir(),
    )[0],
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 80),
    "a manifest that is no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in (5, 10):
        save(tmp_path, step, 2, UNCUT | {"embedding": ([3], [])})
    damage(tmp_path / "step-00000010")
    path, problems = newest_whole(tmp_path, RUN)
    assert path == tmp_path / "step-00000005"
    assert len(problems) == 1
    assert "step-00000010" in problems[0]
    assert "\n" not in problems[0]


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    DAMAGE["no manifest"](tmp_path / "step-00000010")
    save(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000007"]
    save(tmp_path, 10)
    assert newest_whole(tmp_path, RUN) == (tmp_path / "step-00000010", [])


def test_one_of_another_run_or_under_another_name_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path, problems = newest_whole(tmp_path, "0" * 16)
    assert path is None
    assert f"is of step 5 of run {RUN}" in problems[0]
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000009")
    assert newest_whole(tmp_path, RUN)[0] is None


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in (".step-00000010.part", ".step-00000003.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-00000.safetensors").write_bytes(b"half")
    assert newest_whole(tmp_path, RUN) == (tmp_path / "step-00000005", [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    save(tmp_path, 5)
    manifest = tmp_path / "step-00000005" / "manifest.json"
    plain = json.loads(manifest.read_text())
    plain["files"]["../../secret"] = "0" * 64
    manifest.write_text(json.dumps(plain))
    path, problems = newest_whole(tmp_path, RUN)
    assert path is None
    assert "has no manifest that can be read" in problems[0]


def test_values_that_no_file_holds_are_missed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    wide = Piece("norm", (9,), 0, 0, 9, 1)
    missing = Piece("bias", (2,), 0, 0, 2, 1)
    for piece, message in (
        (wide, r"has norm in the shape \(5,\)"),
        (missing, "holds only 0 values of a box of bias"),
    ):
        box = Box(piece, *(torch.zeros(piece.rows) for _ in range(3)))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path, 5, [box])


def test_files_hold_tensors_and_json_alone(tmp_path: Path) -> None:
    save(tmp_path, 5, 2)
    names = sorted(path.name for path in (tmp_path / "step-00000005").iterdir())
    assert names == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
