"""Write ``docs/commands.md``: the help of every command, as ``geo-assets COMMAND --help`` prints it.

The page is never edited by hand; a test holds it equal to what this writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from geo_assets.cli import main as geo_assets
from geo_assets.cli.group import SECTIONS

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 98

_HEAD = """# Commands

Made by `tools/commands_page.py` from the commands themselves: this is what `geo-assets --help` and
`geo-assets COMMAND --help` print. Shell completion of all of it: `eval "$(_GEO_ASSETS_COMPLETE=bash_source geo-assets)"`
(or `zsh_source`, `fish_source`).

Every command ends with 0 when all went well, with 1 and one sentence when something did not, with 2 when it was called
wrongly, and with 130 after Ctrl+C. Whatever was interrupted or killed can be run again: what is finished is kept, and
no file is ever half written.
"""


def commands_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD, _block("geo-assets", geo_assets)]
    listed = {name for names in SECTIONS.values() for name in names}
    rest = tuple(name for name in sorted(geo_assets.commands) if name not in listed)
    for title, names in (*SECTIONS.items(), ("More", rest)):
        here = [name for name in names if name in geo_assets.commands]
        parts += [f"\n## {title}\n"] if here else []
        for name in here:
            for path, command in _commands(name, geo_assets.commands[name]):
                parts += [f"\n### {path}\n", _block(f"geo-assets {path}", command)]
    return "\n".join(parts) + "\n"


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command, or those of a group."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, below in sorted(command.commands.items()):
        yield from _commands(f"{path} {name}", below)


def _block(path: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    return f"```text\n{command.get_help(context)}\n```"


@click.command()
def main() -> None:
    """Write the page."""
    TARGET.write_text(commands_page(), encoding="utf-8")
    click.echo(f"{TARGET.relative_to(TARGET.parent.parent)} written")


if __name__ == "__main__":
    main()
