"""The commands that a page of the documentation shows, run in order as its reader would run them.

Blocks `console` hold commands after `$ `, and below each what it prints. Blocks whose first line is
`# NAME.py` are files, and `# params.yaml` are settings to edit. All other blocks are for reading.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from typer.main import get_command

from pipelines.cli.app import app
from pipelines.core import params_file

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIES = re.compile(r"\b(?=\w*\d)[0-9a-f]{8,64}\b|\d(?:[\d.:e+-]*\d)?|\s+")
_FOREVER = "prong worker"
_DONE = re.compile(r"^\S+ \S+  retrain  \S+  completed", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """One thing that a page asks its reader to do.

    Attributes:
        command: A command; empty for a file.
        output: What the page says that it prints, line by line.
        path: A file to write, or `params.yaml` to edit; empty for a command.
        text: Its text.
    """

    command: str = ""
    output: tuple[str, ...] = ()
    path: str = ""
    text: str = ""


def read(page: Path) -> list[Shown]:
    """Return what a page asks for, in order."""
    found: list[Shown] = []
    for language, text in _BLOCK.findall(page.read_text("utf-8")):
        head = re.match(r"# ([\w/]+\.(?:py|yaml))\n", text)
        if head and language in ("python", "yaml"):
            found.append(Shown(path=head[1], text=text[head.end() :]))
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *output = part.rstrip("\n").split("\n")
                found.append(Shown(command, tuple(output)))
    return found


def parsed(command: str) -> str:
    """Parse a command of `prong` without running it, and return its name.

    Raises:
        AssertionError: If there is no such command.
        click.UsageError: If there is no such option or argument.
    """
    words = shlex.split(command, comments=True)
    found, (name, *rest) = get_command(app), words
    assert name == "prong"
    while hasattr(found, "commands"):
        name = rest.pop(0) if rest else ""
        assert name in found.commands, f"{command}: no command {name!r}"
        found = found.commands[name]
    found.make_context(name, rest)
    return name


@dataclass
class Reader:
    """Someone who follows a page, in a folder of their own.

    Attributes:
        folder: Where they are.
        commands: Holds `prong`, as the installed package would.
        said: Everything that was printed.
    """

    folder: Path
    commands: Path
    said: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, folder: Path) -> Reader:
        """Return one in an empty folder."""
        commands = folder / "bin"
        commands.mkdir(parents=True)
        script = commands / "prong"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines.cli.app "$@"\n')
        script.chmod(0o755)
        place = folder / "work"
        place.mkdir()
        return cls(place, commands)

    def follow(self, step: Shown) -> str:
        """Do what is asked for; return what was printed.

        Raises:
            AssertionError: If a command fails, or prints nothing like what is shown.
        """
        if step.path == "params.yaml":
            wanted = YAML(typ="safe").load(step.text)
            pairs = [
                f"{part}.{key}={v}" for part, knobs in wanted.items() for key, v in knobs.items()
            ]
            assert params_file.edit(self.folder / "params.yaml", pairs), "nothing changed"
            return ""
        if step.path:
            (self.folder / step.path).write_text(step.text, encoding="utf-8")
            return ""
        if step.command.startswith("cd "):
            self.folder = self.folder / step.command.removeprefix("cd ")
            return ""
        code, said = self._serve() if step.command == _FOREVER else self.run(step.command)
        self.said.append(f"$ {step.command}\n{said}")
        assert code == 0, f"{step.command}\n{said}"
        missing = [line for line in step.output if not _printed(line, said)]
        assert not missing, f"{step.command}: not printed: {missing}\n{said}"
        return said

    def run(self, command: str) -> tuple[int, str]:
        """Run one line in the shell; return its exit code and what it printed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=500,
        )
        return done.returncode, done.stdout

    def _serve(self) -> tuple[int, str]:
        """Let the worker do one run, then press Ctrl-C."""
        process = subprocess.Popen(
            # Where these tests run in the background, the shell has them ignore Ctrl-C.
            ["env", "--default-signal=INT", self.commands / "prong", "worker"],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        limit = threading.Timer(500, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if _DONE.search(line):
                    process.send_signal(signal.SIGINT)
            code = process.wait()
        finally:
            limit.cancel()
            process.kill()
            process.communicate()  # its pipe is closed here, not at some later moment
        assert code in (0, 130, 143, -signal.SIGINT), "".join(lines)
        return 0, "".join(lines)

    def _environment(self) -> dict[str, str]:
        others = ("PREFECT_", "MLFLOW_", "PRONG_", "PYTHONDONTWRITEBYTECODE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        who = {"NAME": "A Reader", "EMAIL": "reader@example.org"}
        roles = ("AUTHOR", "COMMITTER")
        named = {f"GIT_{role}_{what}": value for role in roles for what, value in who.items()}
        path = os.pathsep.join((str(self.commands), str(Path(sys.executable).parent), kept["PATH"]))
        return {
            **kept,
            **named,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GIT_CEILING_DIRECTORIES": str(self.commands.parent),
        }


def _printed(line: str, said: str) -> bool:
    """Say whether a line was printed, whatever its numbers and spaces; `…` is any text."""
    pieces = [re.escape(_plain(piece)) for piece in line.split("…")]
    wanted = re.compile(".*".join(pieces))
    return any(wanted.fullmatch(_plain(one)) for one in said.splitlines())


def _plain(text: str) -> str:
    return _VARIES.sub(lambda found: "" if found[0].isspace() else "#", text)
