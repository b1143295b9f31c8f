"""The services of a host, held against systemd's own reading of them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from netvirt.cli import app

UNITS = sorted((Path(__file__).parents[2] / "packaging" / "systemd").glob("*.service"))


def test_systemd_has_nothing_to_say_against_them(tmp_path: Path) -> None:
    """They are read together, from a place where the command they start exists."""
    program = tmp_path / "nvctl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/nvctl", str(program)))

    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
        check=False,
    )

    about_ours = [line for line in found.stderr.splitlines() if "virtkit" in line]
    assert len(UNITS) == 3 and (found.returncode, about_ours) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_they_start_commands_that_there_are(unit: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    program, *words = shlex.split(line)
    command = typer.main.get_command(app)

    while words and hasattr(command, "commands"):
        word = words.pop(0)
        if word.startswith("--"):
            words.pop(0)
        else:
            command = command.commands[word]

    options = {option for parameter in command.params for option in parameter.opts}
    assert program == "/usr/bin/nvctl" and not hasattr(command, "commands")
    assert {word for word in words if word.startswith("--")} <= options
