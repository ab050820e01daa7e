"""An argparse parser whose errors are one line, like those of all bad input."""

import argparse
import sys
from typing import NoReturn

from utils.errors import InputError

LONGEST = 300  # letters of a message, which may quote what was typed


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, exit status 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(_command(), description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        short = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
        raise InputError(f"{short} (see {self.prog} --help)")


def _command() -> str | None:
    """``python -m NAME`` where the program was started so; None: argparse's own default, the name of the file."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
