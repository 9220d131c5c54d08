"""What the tests themselves rest on."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.support.commands import isoplan, isoplan_process
from tests.support.groups import GROUPS, GroupScheduling, group, place
from tests.support.needs import absent
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("required", "outcome"),
    [("", pytest.skip.Exception), ("slurm", pytest.skip.Exception), ("slurm, mount", pytest.fail.Exception)],
)
def test_what_is_absent_is_skipped_unless_it_is_required(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("ISOPLAN_REQUIRE", required)
    with pytest.raises(outcome, match="needs mount: not permitted"):
        absent("mount", "not permitted")


def test_only_what_tests_ask_for_can_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOPLAN_REQUIRE", "slurm,mounts")
    with pytest.raises(AssertionError, match="not mounts"):
        absent("mount", "not permitted")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["run", "absent.yaml"], ["status", "--json"], ["explain", "absent.yaml", "lr"]]
)
def test_a_command_in_this_process_prints_what_one_of_its_own_does(tmp_path: Path, words: list[str]) -> None:
    here, there = isoplan(tmp_path, *words), isoplan_process(tmp_path, *words)
    assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr)


def test_what_groups_name_is_there_and_in_one_group() -> None:
    members = [member for members in GROUPS.values() for member in members]
    assert len(set(members)) == len(members)
    for member in members:
        file, _, function = member.partition("::")
        assert f"def {function}" in (ROOT / "tests" / file).read_text()


def test_a_group_is_named_by_its_files_and_any_other_test_is_one_of_its_own() -> None:
    alone = "tests/model/test_hf.py::test_it[a/b::c]"
    assert group("tests/slurm/test_queue.py::test_it[x]") == "slurm 4"
    assert group("tests/slurm/test_survival.py::test_it_survives_a_node_without_power[x]") == "slurm 1"
    assert group(alone) == alone
    assert (
        place("tests/slurm/test_survival.py::test_it")
        < place("tests/model/test_mesh.py::test_it")
        < place(alone)
    )


def test_no_group_waits_behind_a_test_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of two has a group of two tests: a single test waits behind the second, and then a group."""
    groups = [
        [
            "tests/slurm/test_survival.py::test_it_survives_a_node_without_power",
            "tests/slurm/test_survival.py::test_it_survives_without_a_controller",
        ],
        ["tests/slurm/test_study.py::test_it"],
        ["tests/isoplan/test_light.py::test_it"],
    ]
    single = [f"tests/model/test_hf.py::test_{letter}" for letter in "abc"]
    tests = [*(test for members in groups for test in members), *single]
    monkeypatch.setattr("xdist.scheduler.loadscope.parse_tx_spec_config", lambda config: ["a", "b"])
    scheduling = GroupScheduling(SimpleNamespace(option=SimpleNamespace(loadscopereorder=False)))  # type: ignore[arg-type]
    nodes = [Mock(shutting_down=False), Mock(shutting_down=False)]
    for node in nodes:
        scheduling.add_node(node)
        scheduling.add_node_collection(node, tests)
    scheduling.schedule()

    def sent(node: Mock) -> list[str]:
        return [tests[index] for call in node.send_runtest_some.call_args_list for index in call.args[0]]

    assert [sent(node) for node in nodes] == [groups[0], [*groups[1], single[2]]]
    scheduling.mark_test_complete(nodes[0], 0)
    assert sent(nodes[0]) == [*groups[0], single[1]]
    scheduling.mark_test_complete(nodes[1], tests.index(groups[1][0]))
    assert sent(nodes[1]) == [*groups[1], single[2], *groups[2]]
    scheduling.mark_test_complete(nodes[1], tests.index(single[2]))
    assert sent(nodes[1])[3:] == [single[0]]
    assert not scheduling.workqueue
