"""``geo-assets``: cities, materialization, results, and the state of it all from one command line.

Nothing heavy is imported before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import click

from geo_assets.cli import cities, geotag, imagery, platform, scenes
from geo_assets.cli.group import Group
from geo_assets.home import load_env_file


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="geo-assets")
def main() -> None:
    """A place on the map, turned into Gaussian splats and geolocation data.

    Begin with:  geo-assets demo

    Then a city of your own:  geo-assets city add lund --photos FOLDER

    Lost?  geo-assets status says how far each city is and what to type next, geo-assets doctor what stands in the way,
    and every command has a --help with examples.
    """
    load_env_file()


for _module in (cities, geotag, imagery, platform, scenes):
    for _command in _module.COMMANDS:
        main.add_command(_command)
