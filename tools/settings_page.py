"""Write ``docs/settings.md``: every setting with its type, its default and its meaning, read from the settings' own types.

The page is never edited by hand; a test holds it equal to what this writes.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from geo_assets.settings import Settings

TARGET = Path(__file__).parent.parent / "docs" / "settings.md"

_HEAD = """# Settings

Made by `tools/settings_page.py` from the types in `geo_assets/settings.py`.

Settings stand in `geo_assets.toml` in the working directory (or where `GEO_ASSETS_SETTINGS` points). Each can also
come from the environment, which goes first: `GEO_ASSETS_SPLATS__STEPS=500` is `steps` of the section `[splats]`.
Relative paths are relative to the settings file. An unknown name is an error, never ignored.

| variable of the environment | what it is |
|---|---|
| `MAPILLARY_TOKEN` | token of Mapillary's API; read from here or `.env` alone, never written anywhere |
| `WIKIMEDIA_TOKEN` | token of a Wikimedia account, which may ask more often |
| `GEO_ASSETS_SETTINGS` | path of the settings file |
| `GEO_ASSETS_EXECUTOR` | `module:attribute` of the executor, `dagster_celery:celery_executor` for instance |
| `DAGSTER_HOME` | folder of the Dagster instance; written into `.env` by the first command |
"""


def settings_page() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(_section(path, model) for path, model in _sections(Settings, ""))


def _sections(model: type[BaseModel], path: str) -> typing.Iterator[tuple[str, type[BaseModel]]]:
    """Each table of the settings file with its type, outer ones first."""
    yield path, model
    for name, field in model.model_fields.items():
        if inner := _model_of(field.annotation):
            named = typing.get_origin(field.annotation) is dict
            yield from _sections(inner, ".".join(filter(None, (path, name, "NAME" if named else ""))))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_of(a) for a in typing.get_args(annotation))
    return next((model for model in found if model), None)


def _section(path: str, model: type[BaseModel]) -> str:
    rows = [_row(name, field) for name, field in model.model_fields.items() if not _model_of(field.annotation)]
    title = f"[{path}]" if path else "At the top"
    text = " ".join((model.__doc__ or "").replace("; read it with :func:`load`", "").split())
    table = "| setting | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)
    return f"\n## {title}\n\n{text}\n\n{table}"


def _row(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise click.ClickException(f"The setting {name} has no description; add one in geo_assets/settings.py.")
    default = "required" if field.default is PydanticUndefined else _literal(field.default)
    return f"| `{name}` | {_type(field.annotation)} | {default} | {_cell(field.description)} |\n"


def _literal(value: Any) -> str:
    """A default as TOML writes it; what is left open has no value."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(_toml(v) for v in value)}]`"
    return "`{}`" if value == {} else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:_}" if isinstance(value, int) else str(value)


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(a) for a in inner if a is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}" if inner[-1] is ... else f"{len(inner)} x {_type(inner[0])}"
    if origin is dict:
        return f"table of {_type(inner[1])}"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "datetime": "time"}
    name = getattr(annotation, "__name__", "value")
    return words.get(name, {"Path": "path", "Any": "value"}.get(name, name))


def _cell(text: str) -> str:
    # Pipes and angle brackets would be read as markup of the table.
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    TARGET.write_text(settings_page(), encoding="utf-8")
    click.echo(f"{TARGET}")
