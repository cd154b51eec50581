"""docs/tutorial.md, as its reader would follow it, in an empty folder outside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import shown_commands
from shown_commands import ROOT, Reader

PAGES = ("tutorial.md", "tasks.md")


@pytest.mark.parametrize("name", PAGES)
def test_every_command_shown_exists_and_takes_these_arguments(name: str) -> None:
    steps = shown_commands.read(ROOT / "docs" / name)
    commands = [step.command for step in steps if step.command.startswith("prong ")]
    assert len(commands) >= 3
    for command in commands:
        shown_commands.parsed(command)
    for step in steps:
        if step.path.endswith(".py"):
            compile(step.text, step.path, "exec")


def test_the_tutorial_goes_the_whole_way() -> None:
    steps = shown_commands.read(ROOT / "docs/tutorial.md")
    names = {shown_commands.parsed(s.command) for s in steps if s.command.startswith("prong ")}
    wanted = (
        "init run predict search gates rollback promote history schedule worker rebuild lineage"
    )
    assert names >= set(wanted.split())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    reader = Reader.at(tmp_path / "reader")
    for step in shown_commands.read(ROOT / "docs/tutorial.md"):
        reader.follow(step)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_task_of_the_page_is_trained_judged_asked_and_rebuilt(tmp_path: Path) -> None:
    reader = Reader.at(tmp_path / "reader")
    for step in shown_commands.read(ROOT / "docs/tasks.md"):
        reader.follow(step)
    code, said = reader.run("git add -A && git commit -q -m Settings && prong run")
    assert code == 0, said
    assert "5 cached" in said, said
    code, said = reader.run("prong predict data/raw/table.csv --json")
    assert code == 0, said
    assert said.count('"median"') == 442
    task = reader.folder / "tasks.py"
    text = task.read_text("utf-8")
    task.write_text(text.replace("abs(answers[:, 0]", "-abs(answers[:, 0]"), "utf-8")
    code, said = reader.run("prong run")
    assert code == 2, said
    assert "error: task.name = 'tasks:Quantiles': errors returned -" in said
    assert "Traceback" not in said
    task.write_text(text, "utf-8")
    code, said = reader.run("prong run && prong rebuild champion")
    assert code == 0, said
    assert "5 cached" in said, said
    assert ": the same bytes, " in said
