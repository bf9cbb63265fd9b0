"""What the command line offers, read from its parser: for the man page and the shell's completion.

A file of this directory's programs, which run from a checkout and put it on the module path first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """An option (with ``flags``) or a positional argument (without), as the parser knows it.

    ``value``: what it is given, in the words of the help, such as FILE; empty for a switch.
    """

    flags: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...]
    optional: bool
    repeatable: bool


@dataclass(frozen=True)
class Command:
    """One command with its arguments in the order of its help; ``said`` is the sentence that describes it."""

    name: str
    said: str
    arguments: tuple[Argument, ...]

    @property
    def options(self) -> tuple[Argument, ...]:
        """Those that have flags."""
        return tuple(argument for argument in self.arguments if argument.flags)

    @property
    def positionals(self) -> tuple[Argument, ...]:
        """Those that have none."""
        return tuple(argument for argument in self.arguments if not argument.flags)


def read(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    """The commands of ``parser``, in its own order; what its help hides is left out."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    shown = {action.dest for action in commands._choices_actions if action.help != argparse.SUPPRESS}
    return tuple(
        Command(name, one.description or "", tuple(_arguments(one)))
        for name, one in commands.choices.items()
        if name in shown
    )


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        yield Argument(
            flags=tuple(action.option_strings),
            value=_value(action),
            help=formatter._expand_help(action) if action.help else "",
            choices=tuple(map(str, action.choices or ())),
            optional=not action.required,
            repeatable=isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+"),
        )


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    return action.dest.upper().replace("_", "-") if action.option_strings else action.dest
