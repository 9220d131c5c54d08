import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.kernels import choose
from model.mesh import Axis, Mesh
from model.transformer import Stage
from model.zero import AdamW
from runtime.checkpoint.format import Retention, commit, stage, weights_sha256
from runtime.train import async_checkpoint
from runtime.train.async_checkpoint import AsyncCheckpointer, host_memory
from tests.runtime.checkpoint.test_format import manifest
from tests.support import samples

SPEC = samples.model(layers=2, width=16, heads=2, ffn=32)


def fake_worker(rank: int, seen: list[list[float]]) -> Any:
    """Rank `rank` of two; what it sums is kept, and what was kept before is added."""

    def all_reduce_sum(values: Sequence[float]) -> list[float]:
        seen.append([float(value) for value in values])
        return [sum(each) for each in zip(*seen, strict=True)]

    return SimpleNamespace(
        world=Axis(2, rank),
        is_rank_zero=rank == 0,
        optimizer=SimpleNamespace(stage=SimpleNamespace(spec=SPEC)),
        all_reduce_sum=all_reduce_sum,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seen_by_all", [True, False])
def test_ranks_share_the_digest_of_the_final_weights(
    seen_by_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as one process computes, also where a node does not see the new folder yet."""
    model = Stage(SPEC, precision="fp32", mesh=Mesh(), kernels=choose("torch", "cpu"), device="cpu")
    optimizer = AdamW(model, Axis(), samples.optim())
    optimizer.initialize(0)
    folder = tmp_path / "checkpoints"
    stage(folder, 3, 0, optimizer.boxes())
    commit(folder, manifest(3), 1, Retention())
    monkeypatch.setattr(async_checkpoint, "SHARED_DIGEST_BYTES", 0)
    seen: list[list[float]] = []
    second = AsyncCheckpointer(
        folder if seen_by_all else tmp_path / "nothing", fake_worker(1, seen), Retention()
    )
    assert second.weights_sha256(3) == ""
    words = struct.Struct(">8I").size // 4
    read = sum(any(seen[0][at : at + words]) for at in range(0, len(seen[0]), words))
    assert read == (len(seen[0]) // words // 2 if seen_by_all else 0)
    first = AsyncCheckpointer(folder, fake_worker(0, seen), Retention())
    assert first.weights_sha256(3) == weights_sha256(folder / "step-00000003")


class Cudart:
    """What is page-locked, by address."""

    def __init__(self, failure: int = 0) -> None:
        self.locked: dict[int, int] = {}
        self._failure = failure

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        self.locked[address] = size_bytes
        return self._failure

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


def test_the_copy_of_the_state_takes_its_own_size_and_no_power_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    x = torch.zeros(2**20 + 1000)
    copy = host_memory(x, page_locked=True)
    assert cudart.locked == {copy.data_ptr(): x.nbytes}
    assert copy.untyped_storage().nbytes() == x.nbytes
    del copy
    assert not cudart.locked  # before the memory goes back
    host_memory(x, page_locked=False)


def test_memory_that_cannot_be_page_locked_is_said_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Cudart(failure=2))
    with pytest.raises(
        OSError, match=r"CUDA error 2: cannot page-lock 0\.4 GB of host memory .* request more memory"
    ):
        host_memory(torch.zeros(10**8, device="meta"), page_locked=True)


@pytest.mark.gpu
def test_the_copy_is_page_locked() -> None:
    assert host_memory(torch.zeros(1000, device="cuda"), page_locked=True).is_pinned()
