"""`--version`, and what the shell's completion asks of the console scripts."""

from collections.abc import Callable
from importlib.metadata import version

import pytest

from isoplan import cli

SCRIPTS: dict[str, Callable[[], None]] = {
    "plan": cli.plan_main,
    "run": cli.run_main,
    "audit": cli.audit_main,
    "isoplan": cli.main,
}


def typed(
    script: str, *words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a console script prints; it must succeed."""
    monkeypatch.setattr("sys.argv", [f"/bin/{script}", *words])
    with pytest.raises(SystemExit) as ended:
        SCRIPTS[script]()
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_version_is_the_package_s(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = typed(script, "--version", monkeypatch=monkeypatch, capsys=capsys)
    assert printed == f"isoplan {version('isoplan')}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_is_given_a_completion_of_the_script_s_own_name(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    printed = typed(script, "--show-completion", "bash", monkeypatch=monkeypatch, capsys=capsys)
    assert f"_{script.upper()}_COMPLETE=complete_bash" in printed
    assert printed.rstrip().endswith(f" {script}")


@pytest.mark.parametrize(
    ("script", "line", "expected"),
    [
        ("isoplan", "isoplan st", {"status"}),
        ("isoplan", "isoplan rehearse --r", {"--rank"}),
        ("isoplan", "isoplan fit --a", {"--at"}),
        ("run", "run --un", {"--until-done"}),
        ("plan", "plan --ou", {"--out"}),
        ("audit", "audit --js", {"--json"}),
    ],
)
def test_the_shell_completes_verbs_and_options(
    script: str,
    line: str,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"_{script.upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert set(typed(script, monkeypatch=monkeypatch, capsys=capsys).split()) == expected
