"""Command lines that are refused in one line, and what their numbers may be."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses with a ValueError that names the argument, in one line, and ends nothing."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number of at least `least`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'found {value}, expected at least {least}')
        return value

    return whole_number


def within(low: float, high: float) -> Callable[[str], float]:
    """Return the type of an argument that is a number from `low` to `high`, and no NaN."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'found {value:g}, expected {low:g} to {high:g}')
        return value

    return number
