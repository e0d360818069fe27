"""The system's Chromium, headless, driven by Playwright; WebGL is drawn in software."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Two cores draw a frame in about a second; the compositor must wait for it.
    "--disable-gpu-watchdog",
]


def chromium_path() -> str | None:
    """The browser of this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Watch:
    """What a page asked for and complained about."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def outside(self) -> list[str]:
        """Requests that left this machine."""
        local = (
            "file:",
            "data:",
            "blob:",
            "http://127.0.0.1",
            "http://localhost",
            "ws://127.0.0.1",
            "about:",
            "chrome",
        )
        return [url for url in self.requests if not url.startswith(local)]


@contextlib.contextmanager
def open_page(width: int = 960, height: int = 640) -> Iterator[tuple[Page, Watch]]:
    """A page of a fresh browser, and what it asks for.

    Raises:
        RuntimeError: there is no Chromium on this machine.
    """
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    if path is None:
        raise RuntimeError("No Chromium on this machine; install the package 'chromium' of your distribution.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        watch = Watch()
        page.on("request", lambda request: watch.requests.append(request.url))
        page.on("pageerror", lambda error: watch.errors.append(str(error)))
        try:
            yield page, watch
        finally:
            browser.close()


def pixels(png: bytes) -> np.ndarray:
    """A screenshot as an array [H, W, 3] of bytes."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def drawn_share(png: bytes) -> float:
    """Share of pixels that differ clearly from the most frequent colour, which is the background."""
    flat = pixels(png).reshape(-1, 3).astype(np.int32)
    codes = flat[:, 0] // 16 * 256 + flat[:, 1] // 16 * 16 + flat[:, 2] // 16
    values, counts = np.unique(codes, return_counts=True)
    background = flat[codes == values[counts.argmax()]].mean(axis=0)
    return float((np.abs(flat - background).max(axis=1) > 24).mean())


def wait_until_drawn(page: Page, minimum: float = 0.3, seconds: float = 90) -> bytes:
    """A screenshot once enough of the page differs from its background, or the last one at the end of the time."""
    png = b""
    for _ in range(int(seconds / 3)):
        page.wait_for_timeout(3000)
        png = page.screenshot(timeout=120_000)
        if drawn_share(png) >= minimum:
            break
    return png
