"""`make gpu-check` without a GPU: its layouts, its page, and a rehearsal on CPU processes."""

import json
import math
import re
from pathlib import Path

import pytest

from bench import gpu_check

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "first-hour-on-gpus.md"


@pytest.mark.parametrize(("devices", "model"), [(8, gpu_check.SMALL), (4, gpu_check.TINY)])
def test_every_factorisation_of_the_devices_is_tried_and_divides_the_model(
    devices: int, model: gpu_check.ModelSpec
) -> None:
    found = dict(gpu_check.layouts(devices, model.layers))
    cuts = {(cut.dp, cut.pp, cut.tp) for cut in found.values()}
    assert cuts == {
        (dp, pp, tp)
        for dp in range(1, devices + 1)
        for pp in range(1, devices + 1)
        for tp in range(1, devices + 1)
        if math.prod((dp, pp, tp)) == devices
    }
    for cut in found.values():
        assert gpu_check.SEQUENCES % (cut.dp * cut.micro_batch_sequences) == 0
        assert model.layers % (cut.pp * cut.interleave) == 0
        assert model.heads % cut.tp == model.kv_heads % cut.tp == model.vocab % cut.tp == 0


def test_the_page_has_the_commands_of_every_part_in_their_order() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^## \d\. .*`(\w+)`$", page, re.MULTILINE) == list(gpu_check.PARTS)
    commands = re.findall(r"^(?:make|python) .*$", page, re.MULTILINE)
    own = [f"python {' '.join(words)}" for words in (gpu_check.DOCTOR, gpu_check.KERNELS)]
    rest = [f"python -m bench.gpu_check {part}" for part in gpu_check.PARTS[2:]]
    assert commands == ["make gpu-check", *own, *rest]


def test_without_a_gpu_and_for_an_unknown_part_one_line_says_what_to_write(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["sped"])
    assert capsys.readouterr().err.endswith(
        "error: no part sped; write some of: doctor kernels parity resume speed\n"
    )
    machine = gpu_check.this_machine()
    monkeypatch.setattr(gpu_check, "this_machine", lambda: gpu_check.replace(machine, gpus=()))
    assert gpu_check.main([]) == 2
    assert (
        capsys.readouterr().err == "gpu-check needs a CUDA device, and there is none; --cpu 2 rehearses it\n"
    )


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.soak)]
)
def test_a_rehearsal_of_parity_passes(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main(["--cpu", str(ranks), "parity"]) == 0
    found = json.loads(Path("gpu-check/results.json").read_text())["parity"]
    layouts = {name for name, _ in gpu_check.layouts(ranks, gpu_check.TINY.layers)}
    assert {name for name, one in found.items() if one["ok"]} == {"one device", *layouts}
    assert found["one device"]["last_loss"] < 0.9 * math.log(gpu_check.TINY.vocab)  # they can differ


@pytest.mark.soak
def test_a_rehearsal_of_kill_and_resume_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main(["--cpu", "2", "resume"]) == 0
    found = json.loads(Path("gpu-check/results.json").read_text())["resume"]
    assert (found["killed"], found["resumed_from_step"] >= 2) == ("failed", True)
