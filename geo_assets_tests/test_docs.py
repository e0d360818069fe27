"""The pages of docs/ build without a broken link, and what is made from the code is up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.settings_page import settings_page

ROOT = Path(__file__).parent.parent


def test_the_pages_build_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    # A reader without network sees the same page: nothing is fetched from elsewhere.
    fetched = r'<(?:script|img)[^>]+src="https?://|<link rel="(?:stylesheet|preconnect|preload)[^>]+href="https?://'
    assert not [page.name for page in pages if re.search(fetched, page.read_text())]


def test_the_page_of_the_settings_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page(), "run: make docs"


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()))
def test_links_of_the_readme(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()


def test_the_readme_shows_every_asset() -> None:
    from geo_assets.definitions import defs

    readme = (ROOT / "README.md").read_text()
    names = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert not [name for name in sorted(names) if f"`{name}`" not in readme]
