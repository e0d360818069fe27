"""How every command explains itself: sections of commands, what each writes, what comes next, errors as one sentence."""

from __future__ import annotations

from typing import Any

import click

from geo_assets.errors import GeoAssetsError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

SECTIONS = {
    "Begin": ("demo", "city", "doctor"),
    "Work": ("harvest", "materialize", "status", "dev"),
    "Look": ("show", "serve", "globe"),
    "Take away": ("export", "model", "splat"),
    "Geolocation data": ("geotag", "cells", "cluster"),
    "Upkeep": ("definitions",),
}


class Command(click.Command):
    """A command whose help ends with examples, what it writes, and what comes next.

    Args:
        arguments: those of :class:`click.Command`.
        examples: command lines, one a line, without ``geo-assets``.
        writes: what is there afterwards, one sentence.
        then: what to type next, without ``geo-assets``; empty where nothing follows.
        options: those of :class:`click.Command`.
    """

    def __init__(self, *arguments: Any, examples: str = "", writes: str = "", then: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples, self.writes, self.then = _lines(examples), writes, _lines(then)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Append the examples and what follows, each command line on a line of its own."""
        for title, lines in (("Examples", self.examples), ("Next", self.then)):
            if title == "Next" and self.writes:
                with formatter.section("Writes"):
                    formatter.write_text(self.writes)
            if lines:
                with formatter.section(title):
                    for line in lines:
                        formatter.write(f"{'':{formatter.current_indent}}geo-assets {line}\n")
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """Lists its commands by section, and ends with the sentence of an error that a user can act on."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; neither an error that a user can act on nor Ctrl-C shows a traceback."""
        try:
            return super().invoke(ctx)
        except GeoAssetsError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("\nStopped. What was finished is kept: run the same command again.", err=True)
            ctx.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands under the headings of :data:`SECTIONS`; one that is in none comes last."""
        if ctx.parent is not None:
            super().format_commands(ctx, formatter)
            return
        listed = {name for names in SECTIONS.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in listed)
        width = max(map(len, self.commands))
        for title, names in (*SECTIONS.items(), ("More", rest)):
            rows = [(name, self.commands[name]) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    limit = formatter.width - 6 - width
                    formatter.write_dl([(f"{n:<{width}}", command.get_short_help_str(limit)) for n, command in rows])


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def numbers(text: str, option: str = "--bbox") -> tuple[float, float, float, float]:
    """West, south, east, north in degrees, as an option gives them.

    Raises:
        click.BadParameter: they are not four numbers.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not west,south,east,north in degrees.", param_hint=option) from None
    return west, south, east, north
