"""Reads a command line to its end, where click ends at the first mistake."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import click

__all__ = ["Command", "Mistakes"]


class Mistakes(click.UsageError):
    """All mistakes of a command line, in the order in which click finds them."""

    def __init__(self, mistakes: list[click.UsageError], ctx: click.Context) -> None:
        super().__init__(mistakes[0].message, ctx)
        self.mistakes = mistakes


class Command(click.Command):
    """A command that says all mistakes of its command line at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return the arguments that are left; raises Mistakes."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as first:
            raise Mistakes([first, *_others(self.get_params(ctx), ctx, given, first)], ctx) from None


def _others(
    parameters: list[click.Parameter], ctx: click.Context, args: list[str], exc: click.UsageError
) -> Iterator[click.UsageError]:
    """Yield the mistakes after `exc`: what is known to be wrong is taken away, and the rest is read again."""
    guessed = False
    while True:
        if isinstance(exc, click.BadParameter) and exc.param in parameters:
            parameters = [_with_any_value(one) if one is exc.param else one for one in parameters]
        elif isinstance(exc, click.NoSuchOption | click.BadOptionUsage):
            args, guessed = _without(exc.option_name, args), True
        else:
            return
        reader = click.Command(ctx.info_name, params=parameters, add_help_option=False)
        try:
            reader.parse_args(click.Context(reader, ctx.parent, ctx.info_name), list(args))
            return
        except click.UsageError as found:
            exc = found
        # Whether an option that there is not has a value is not known: one may be taken for an argument, or lost.
        if guessed and (isinstance(exc, click.MissingParameter) or type(exc) is click.UsageError):
            return
        yield exc


def _with_any_value(parameter: click.Parameter) -> click.Parameter:
    lenient = copy(parameter)
    lenient.type, lenient.callback, lenient.required = click.UNPROCESSED, None, False
    return lenient


def _without(option: str, args: list[str]) -> list[str]:
    """Return the arguments without the first use of an option, and without what may be its value."""
    for index, text in enumerate(args):
        if text == option:
            has_value = not "".join(args[index + 1 : index + 2]).startswith("-")
            return args[:index] + args[index + 1 + has_value :]
        if text.startswith(f"{option}="):
            return args[:index] + args[index + 1 :]
    return []  # It is a letter among others, as in -xyz.
