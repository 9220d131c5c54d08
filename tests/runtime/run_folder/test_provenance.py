import subprocess
from pathlib import Path

import pytest

from runtime.run_folder.provenance import commit, environment


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tracked source file in a repository of one commit."""
    path = tmp_path / "package" / "module.py"
    path.parent.mkdir()
    path.write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    return path


def test_a_clean_checkout_is_its_commit(source: Path) -> None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=source.parent, capture_output=True, text=True, check=True
    )
    assert commit(source) == done.stdout.strip()
    (source.parent / "untracked.txt").write_text("changes nothing")
    assert commit(source) == done.stdout.strip()


def test_a_changed_checkout_is_dirty(source: Path) -> None:
    source.write_text("x = 2\n")
    assert (commit(source) or "").endswith("+dirty")


def test_an_installed_package_inside_somebody_elses_repository_has_no_commit(
    source: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "venv" / "module.py"
    installed.parent.mkdir()
    installed.write_text("x = 1\n")
    assert commit(installed) is None


def test_without_git_there_is_no_commit(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit(source) is None


def test_the_environment_names_what_changes_numbers() -> None:
    found = environment(["a device"])
    assert {"torch", "numpy"} <= set(found.packages)
    assert found.host
    assert found.python.startswith("3.")
    assert found.cpu
    assert found.devices == ("a device",)
