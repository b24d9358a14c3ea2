"""The command line: which commands there are, and what an error looks like.

A command lives in its own module, which is imported only when the command is used: `pccl status`
must not wait for torch, and a command whose dependencies are missing must not break the others.

Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly or could not begin, 130 interrupted.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from pccl.base.errors import PcclError, UsageError

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

COMMANDS: Final = {
    "coordinator": ("pccl.cli.coordinator", "Runs the coordinator of a run."),
    "ca": ("pccl.cli.ca", "Makes tickets for a secured run, and revokes them."),
    "status": ("pccl.cli.status", "Shows the members of a run and how they are."),
    "replay": ("pccl.cli.replay", "Runs a recorded coordinator again, offline."),
    "bench": ("pccl.cli.bench", "Measures collectives on this machine."),
    "demo": ("pccl.cli.demo", "Trains a small model while peers are killed and join."),
}
"""Name: (module that has it as `command`, line in the list of commands)."""


class _Missing(click.ClickException):
    exit_code = MISUSED  # it could not begin


class LazyCommands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name][0]
        try:
            command = importlib.import_module(module).command
        except ImportError as error:
            raise _Missing(
                f"`pccl {cmd_name}` needs something that is not installed ({error}); "
                "pip install 'pccl[demo,bench]' brings it"
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pccl", prog_name="pccl")
def cli() -> None:
    """Fault-tolerant collective communication: peers come and go, the run goes on."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; never raises on a mistake of the user's."""
    try:
        result = cli.main(args=args, prog_name="pccl", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UsageError as error:
        print_error(str(error))
        return MISUSED
    except PcclError as error:
        print_error(str(error))
        return FAILED
    return result if isinstance(result, int) else 0


def print_error(text: str) -> None:
    """Says on stderr what went wrong, in one paragraph."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
