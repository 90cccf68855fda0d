"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import medtrain
from medtrain.cli.app import app

HEAVY = ("torch", "numpy", "hydra", "omegaconf", "optuna", "rich", "yaml", "pandas", "wandb", "nibabel")
COMMANDS = [
    "train", "crossval", "sweep", "resume", "evaluate", "compare", "predict", "export",
    "plan", "show", "list", "describe", "validate", "runs", "doctor", "data",
]  # fmt: skip


def medtrain_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medtrain", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['medtrain', *{words!r}]\n"
        "from medtrain.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"loaded = set({HEAVY!r}) & set(sys.modules)\n"
        "sys.exit(f'imported: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = result.output.split("Commands:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == COMMANDS


@pytest.mark.parametrize("command", [*COMMANDS, "data check", "data prepare"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert result.output.split("\n\n")[1].strip()[-1] in ".:"  # a sentence says what it does


def test_examples_keep_their_lines() -> None:
    output = CliRunner().invoke(app, ["train", "--help"]).output
    assert "\n      medtrain train\n      medtrain train model=unet" in output


def test_version() -> None:
    done = medtrain_process("--version")
    assert (done.returncode, done.stdout) == (0, f"medtrain {medtrain.__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: no such command 'trian'. Did you mean 'train'?\nhint: see `medtrain --help`\n"),
        (
            ["train", "--confg-dir=x"],
            "error: no such option: --confg-dir (Possible options: --config-dir)\nhint: see `medtrain train --help`\n",
        ),
        (["list", "modle"], None),
    ],
)
def test_mistakes_are_one_line_and_a_hint(words: list[str], message: str | None) -> None:
    done = medtrain_process(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    if message is not None:
        assert done.stderr == message
    else:
        assert done.stderr.startswith("error: unknown group `modle`; groups are: task, model, ")
        assert done.stderr.endswith("\nhint: did you mean `model`?\n")


def test_nothing_given_shows_the_help() -> None:
    done = medtrain_process()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: medtrain [OPTIONS] COMMAND")


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import subprocess, sys\n"
         "p = subprocess.Popen([sys.executable, '-m', 'medtrain', 'list', '--long'], stdout=subprocess.PIPE)\n"
         "p.stdout.close()\n"
         "sys.exit(p.wait())"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
