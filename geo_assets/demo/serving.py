"""A server on loopback in a thread of its own, for the demo's stand-ins of other people's services."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web


@contextlib.contextmanager
def serving(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], port: int = 0, *, name: str = "demo"
) -> Iterator[str]:
    """Serve until the block ends.

    Args:
        handle: answers a request.
        port: 0 takes a free one.
        name: of the thread.

    Yields:
        The base address.
    """
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    started: list[str | BaseException] = []

    async def main() -> None:
        # Without an application: its router and middlewares cost more than most answers.
        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            started.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            ready.set()
            await stop.wait()
        finally:
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            started.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    ready.wait()
    address = started[0]
    if isinstance(address, BaseException):
        raise address
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
