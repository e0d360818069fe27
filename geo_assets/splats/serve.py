"""A small web server for splats: a browser lets no page from a disk read the files beside it.

It answers on this machine only, unless told otherwise, and shows nothing of a lake but its splats.
"""

from __future__ import annotations

import contextlib
import mimetypes
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.splats.city_page import MOST_IN_ONE_FILE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import Message, Receive, Scope, Send

KINDS = ("splats", "splats_city", "pages")
"""Kinds of files that are shown; each is a folder of the address."""
LOOPBACK = "127.0.0.1"
_TYPES = {
    ".glb": "model/gltf-binary",
    ".webp": "image/webp",
    ".wasm": "application/wasm",
    ".ply": "application/octet-stream",
}


@dataclass(frozen=True)
class Page:
    """A page of the lake: its key, and whether it has to come from a server."""

    key: str
    served: bool


def page_of(lake: Lake, city: str, box: str | None, *, globe: bool = False) -> Page:
    """The page that shows a city or one of its boxes best: from the disk where one file holds it all.

    Raises:
        ConfigError: it has not been made yet.
    """
    kind, where = ("splats", {"city": city, "box": box}) if box else ("splats_city", {"city": city})
    large = (
        box is None and int(lake.read_if_any("splat_city", ["n_splats"], city=city).n_splats.sum()) > MOST_IN_ONE_FILE
    )
    name = "globe.html" if globe else "index.html" if large else "viewer.html"
    page = Page(lake.key(kind, name, **where), globe or large)
    if not lake.exists(page.key):
        what = f"splat_ply --city {city} --box {box}" if box else f"splat_city --city {city}"
        again = " with this version" if lake.exists(lake.key(kind, "viewer.html", **where)) else " yet"
        raise ConfigError(
            f"There is no {'globe' if globe else 'splat'} of {city} {box or ''}{again}. Make it: "
            f"geo-assets materialize --select {what}"
        )
    return page


def folders_of(lake: Lake) -> dict[str, Path]:
    """What is shown of a lake: its splats and their pages, by the first part of the address.

    Raises:
        ConfigError: the lake is not on a disk.
    """
    if not lake.is_local:
        raise ConfigError(
            "The lake is not on a disk, so its splats cannot be served from here. Copy files/splats_city to a disk, or "
            "give the bucket's own web address to a browser."
        )
    return {kind: Path(lake.root, "files", kind) for kind in KINDS}


def application(folders: dict[str, Path], *, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    """The server's application: files with ranges and ETags, nothing else.

    Args:
        folders: what to show, by the first part of the address (``{"cesium": folder}``); ``""`` is all the rest. Of two
            that fit, the one that is named first answers.
        hosts: names that a request may call this server by; a page of another name may not read it.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    for suffix, kind in _TYPES.items():
        mimetypes.add_type(kind, suffix)
    routes = [
        Mount(f"/{name}" if name else "", _Fresh(StaticFiles(directory=folder, check_dir=False)))
        for name, folder in folders.items()
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


class _Fresh:
    """Lets a browser keep files, but ask whether they are still the same: a city is materialized anew in place."""

    def __init__(self, app: Callable) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-cache")]
            await send(message)

        await self._app(scope, receive, with_header)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"Nothing can listen on {host}:{port} ({error.strerror}). Choose another --port.") from None
    listener.listen()
    return listener


def address(listener: socket.socket, path: str = "") -> str:
    """The web address of a path on a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{quote(path, safe='/=')}"


def allowed_hosts(host: str) -> tuple[str, ...]:
    """Names by which a server on ``host`` may be called; on this machine only its own, against rebound names."""
    return (host.strip("[]"), "localhost") if host in (LOOPBACK, "::1", "localhost") else ("*",)


def web_path(key: str) -> str:
    """The path of a key of the lake on the server."""
    return key.removeprefix("files/")


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer until Ctrl+C."""
    import uvicorn

    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


@contextlib.contextmanager
def in_background(app: Starlette, path: str = "") -> Iterator[str]:
    """The application on a free port of this machine while the block runs; gives the web address of a path on it."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with listening(LOOPBACK, 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield address(listener, path)
        finally:
            server.should_exit = True
            thread.join(10)
