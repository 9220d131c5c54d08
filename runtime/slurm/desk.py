"""`run --slurm` as a person meets it: what was queued, what is left to SLURM, and what --dry-run would queue."""

import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from runtime import drive, prepare
from runtime.drive import Driver, Ran
from runtime.launch import RESUME
from runtime.slurm import queue, study
from runtime.slurm.queue import Asked, Script
from specs.budget import Budget
from specs.files import load
from specs.plan import Plan
from specs.words import several


def queue_plan(driver: Driver, path: Path, plan: Plan, json: bool) -> int:
    """Queue a plan's runs that are not finished or with SLURM already."""
    ran = study.carry_out(driver, prepare.from_plan(plan, path), _asked(plan, path), _name(plan), again=True)
    if json:
        _print({"runs": _states(ran), "exit_code": _code(ran.exit_code)})
    _tell(driver, ran)
    if ran.exit_code == drive.OK:
        driver.say(f"every run is finished; next: audit {escape(str(path))}")
    else:
        driver.say(f"see: isoplan status {escape(str(path))}")
    return _code(ran.exit_code)


def queue_budget(driver: Driver, path: Path, until_done: bool, json: bool) -> int:
    """Do what is due of a budget now; with `until_done` the rest follows by itself."""
    done = study.advance(driver, path, until_done=until_done, again=True)
    if done.audit is None:
        _tell(driver, done.ran)
    if json:
        verdict = None if done.audit is None else done.audit.verdict
        runs = _states(done.ran)
        _print({"plan": str(done.plan), "runs": runs, "verdict": verdict, "exit_code": _code(done.exit_code)})
    return _code(done.exit_code)


def preview_plan(driver: Driver, path: Path, plan: Plan, json: bool) -> int:
    """The sbatch scripts of what is not finished, and what each of their jobs runs. Nothing is queued."""
    wanted = [one for one in prepare.from_plan(plan, path) if not one.finished(driver.workspace)]
    prepare.check(wanted, driver.workspace, None, None)
    live = queue.live(driver.workspace, [study.run_folder(driver, one.run.fingerprint()) for one in wanted])
    due = [one for one in wanted if one.run.fingerprint() not in live]
    titles = {one.run.fingerprint(): one.title for one in wanted}
    made = queue.scripts(driver.workspace, _asked(plan, path), due, _name(plan))
    _preview(driver, made, titles, json)
    if not json:
        driver.say(
            f"{several(len(due), 'run')} to queue, {len(live)} with SLURM already. Nothing was queued."
        )
    return drive.OK


def preview_budget(driver: Driver, path: Path, budget: Budget, until_done: bool, json: bool) -> int:
    """How far a budget's chain is, and the scripts of what is due of it."""
    asked = Asked(*prepare.cluster_of(budget, path.parent, path))
    steps = drive.chain(driver.workspace, budget)
    made: list[Script] = []
    titles: dict[str, str] = {}
    plan = next(
        (
            driver.workspace.plan(budget.name, p)
            for p in ("target", "pilots")
            if driver.workspace.plan(budget.name, p).exists()
        ),
        None,
    )
    if plan is not None:
        wanted = [
            one for one in prepare.from_plan(load(plan, Plan), plan) if not one.finished(driver.workspace)
        ]
        titles = {one.run.fingerprint(): one.title for one in wanted}
        made += queue.scripts(driver.workspace, asked, wanted, budget.name)
    if until_done:
        made.append(queue.study_script(driver.workspace, asked, path, budget.name, ()))
    if not json:
        for number, (name, state) in enumerate(steps, 1):
            driver.say(f"{number}. {name:<8}{escape(state)}")
    _preview(driver, made, titles, json)
    if not json:
        driver.say("Nothing was queued.")
    return drive.OK


def _preview(driver: Driver, made: Sequence[Script], titles: dict[str, str], json: bool) -> None:
    if json:
        _print({"scripts": [{"text": one.text, "tasks": [repr(task) for task in one.tasks]} for one in made]})
        return
    for one in made:
        driver.say(f"\n[bold]{escape(one.submission.name)}[/]")
        driver.console.print(one.text, highlight=False, markup=False, soft_wrap=True)
        for index, task in enumerate(one.tasks):
            run = one.submission.runs[index] if one.submission.runs else None
            what = "the study's next step" if run is None else titles[run]
            driver.say(
                f"  {'each task' if run else 'the job'} of {index} calls {escape(repr(task))}: {escape(what)}"
            )


def _tell(driver: Driver, ran: Ran) -> None:
    """How far the runs are, in a few lines."""
    for one in ran.outcomes:
        driver.say(f"  {escape(one.job.title)}: {one.state}, {escape(one.message)}")
    finished = len(ran.wanted) - len(ran.outcomes)
    if finished:
        driver.say(f"  {finished} of {several(len(ran.wanted), 'run')} are finished")


def _states(ran: Ran) -> list[dict[str, Any]]:
    open_ = {one.job.folder.name: one for one in ran.outcomes}
    return [
        {"run": run, "title": one.title}
        | ({"state": open_[run].state, "said": open_[run].message} if run in open_ else {"state": "finished"})
        for one in ran.wanted
        for run in [one.run.fingerprint()]
    ]


def _asked(plan: Plan, path: Path) -> Asked:
    return Asked(*prepare.cluster_of(plan.budget, prepare.budget_folder(plan, path), path))


def _name(plan: Plan) -> str:
    return f"{plan.budget.name}-{plan.phase}"


def _code(code: int) -> int:
    """Queued is as good as done for whoever asked."""
    return drive.OK if code == RESUME else code


def _print(plain: Any) -> None:
    sys.stdout.write(jsonlib.dumps(plain, indent=1) + "\n")
