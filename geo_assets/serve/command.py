"""The command ``geo-assets serve``: where it listens, what it says, and the browser that it opens."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable

from geo_assets.errors import ConfigError

PORT = 3001
"""Beside Dagster's own 3000."""


def run(
    city: str | None = None,
    *,
    say: Callable[[str], None],
    port: int = PORT,
    host: str = "127.0.0.1",
    public: bool = False,
    style: str | None = None,
    browser: bool = True,
) -> None:
    """Show the lake in a browser until Ctrl+C.

    Args:
        city: the city to begin with; by default the first of the settings.
        say: prints a line.
        port: where to listen; 0 takes a port that is free.
        host: where to listen; other than this machine's own only if ``public``.
        public: whether others may see the photos, splats and tables.
        style: address of a MapLibre style for the background of the map.
        browser: whether to open one.

    Raises:
        ConfigError: no such city, the port is taken, or the host is not this machine and nobody said ``public``.
    """
    from geo_assets.lake import Lake
    from geo_assets.serve.app import application
    from geo_assets.settings import load
    from geo_assets.splats import serve

    settings = load()
    if city is not None:
        settings.city(city)
    hosts = serve.allowed_hosts(host)
    if hosts == ("*",):
        if not public:
            raise ConfigError(
                f"On {host} everybody on the network sees the photos and splats of this lake. Say --public if they may, "
                "or leave --host out."
            )
        say(f"Warning: everybody who reaches {host}:{port} sees the photos and splats of this lake.")
    if style is not None:
        say("The map's background comes from outside: whoever serves the style sees which places are looked at.")
    app = application(Lake(settings.lake), load, style=style, hosts=hosts)
    with serve.listening(host, port) as listener:
        address = serve.address(listener) + (f"#/{city}" if city else "")
        say(f"{address}\nCtrl+C stops the server.")
        if browser:
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        serve.serve(app, listener)
