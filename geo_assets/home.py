"""The Dagster instance of this folder: ``.dagster/``, shared by the UI, ``dagster`` and ``geo-assets``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

VARIABLE = "DAGSTER_HOME"
_TEMPLATE = Path(__file__).parent / "deploy" / "dagster.yaml"


def prepare_home(folder: Path | None = None) -> Path:
    """Make the instance folder if needed and point this process to it; an exported ``DAGSTER_HOME`` wins.

    The folder's ``.env`` is given the same address, because ``dagster dev`` reads it from there, before what is exported;
    a line that is there already is left alone.
    """
    folder = folder or Path.cwd()
    named = os.environ.get(VARIABLE) or _of_env_file(folder / ".env")
    home = Path(named) if named else folder / ".dagster"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(_TEMPLATE, home / "dagster.yaml")
    if not named:
        with (folder / ".env").open("a") as env:
            env.write(f"{VARIABLE}={home}\n")
    os.environ[VARIABLE] = str(home)
    return home


def find_home(folder: Path | None = None) -> Path | None:
    """The instance folder if there is one, and this process pointed to it; nothing is made."""
    folder = folder or Path.cwd()
    named = os.environ.get(VARIABLE) or _of_env_file(folder / ".env")
    if not named or not Path(named).is_dir():
        return None
    os.environ[VARIABLE] = named
    return Path(named)


def load_env_file(folder: Path | None = None) -> None:
    """Read ``.env`` into the environment, as ``dagster`` does; what is exported already wins."""
    from dotenv import load_dotenv

    load_dotenv((folder or Path.cwd()) / ".env", override=False)


def _of_env_file(path: Path) -> str | None:
    from dotenv import dotenv_values

    return dotenv_values(path).get(VARIABLE) if path.exists() else None
