"""The web app: one page, answers in JSON, and the pictures and splats of the lake. It writes nothing.

==================================================  =============================================================
``GET /``                                           the page
``GET /api/settings``                               style of the background, version
``GET /api/cities``                                 cities with grid, funnel, states and what to type next
``GET /api/cities/CITY/boxes``                      the boxes that were asked for, as columns
``GET /api/cities/CITY/boxes/BOX``                  one box: funnel, certificate, model, splat, credits
``GET /api/cities/CITY/boxes/BOX/images``           its images as columns, at most 20,000
``GET /api/cities/CITY/boxes/BOX/images/IMAGE``     one image: photo, credit, PSNR
``GET /api/cities/CITY/boxes/BOX/sequences``        ways of its sequences as GeoJSON
``GET /api/cells``                                  levels of the clustering
``GET /api/cells/LEVEL?bbox=W,S,E,N``               its cells in a view, at most 2,000, those of most photos first
``GET /api/cells/LEVEL/CELL``                       one cell
``GET /files/KIND/...``                             photos, splats and their pages, with byte ranges
==================================================  =============================================================

Degrees are EPSG:4326, longitude first. An error is ``{"error": "one sentence"}``. Every answer has an ETag of its
content, so a page that looks again every few seconds is told 304.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import mimetypes
import traceback
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from geo_assets.errors import ConfigError, GeoAssetsError, SourceError
from geo_assets.lake import Lake
from geo_assets.serve.box import box_json, image_json, images_json, sequences_json
from geo_assets.serve.boxes import cities_json, kept_boxes
from geo_assets.serve.cells import cell_json, cells_json, kept_cells, levels_json
from geo_assets.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).with_name("page")
KINDS = ("images", "splats", "splats_city", "pages")
"""Kinds of files of the lake that are shown."""

SMALLEST_TO_PACK = 1_000
_OWN = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "worker-src": "'self'",
    "frame-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
# The pages of splats hold their scripts, their worker and their splat in one file; they too may ask nobody outside.
_OF_SPLATS = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'none'; base-uri 'self'; "
    "frame-ancestors 'self'"
)


def application(
    lake: Lake,
    settings: Callable[[], Settings],
    *,
    style: str | None = None,
    hosts: tuple[str, ...] = ("*",),
    pause_s: float = 1.0,
) -> Starlette:
    """The app of a lake.

    Args:
        lake: it is read only.
        settings: gives the present settings, so that a city that is added shows up.
        style: address of a MapLibre style for the background; without one nothing outside is asked.
        hosts: names that a request may call this server by, against rebound names; ``*``: any.
        pause_s: least time between two looks for changes of the lake [s].

    Raises:
        ConfigError: the style is not an http address.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from geo_assets.splats import serve

    policy = _policy(style)
    boxes, cells = kept_boxes(lake, pause_s), kept_cells(lake, pause_s)
    about = {"style": style, "version": version("geo-assets")}
    get: dict[str, Callable[[Request], Any]] = {
        "settings": lambda request: about,
        "cities": lambda request: cities_json(settings(), boxes.get(), lake, reading=boxes.reading),
        "cities/{city}/boxes": lambda request: _columns(request, settings(), boxes.get()),
        "cities/{city}/boxes/{box}": lambda request: box_json(
            lake, settings(), boxes.get().get(request.path_params["city"]), **request.path_params
        ),
        "cities/{city}/boxes/{box}/images": lambda request: images_json(lake, settings(), **request.path_params),
        "cities/{city}/boxes/{box}/images/{image_id}": lambda request: image_json(
            lake, settings(), **request.path_params
        ),
        "cities/{city}/boxes/{box}/sequences": lambda request: sequences_json(lake, settings(), **request.path_params),
        "cells": lambda request: levels_json(cells.get()),
        "cells/{level:int}": lambda request: cells_json(
            cells.get(), request.path_params["level"], _bounds(request.query_params.get("bbox"))
        ),
        "cells/{level:int}/{cell_id:int}": lambda request: cell_json(cells.get(), **request.path_params),
    }
    packed = _Packed()
    routes = [Route(f"/api/{path}", _endpoint(answer, packed)) for path, answer in get.items()]
    mimetypes.add_type("text/javascript", ".mjs")
    if lake.is_local:
        files: ASGIApp = serve.application({kind: Path(lake.root, "files", kind) for kind in KINDS})
    else:
        files = Starlette(routes=[Route("/{key:path}", _from(lake))])
    return Starlette(
        routes=[
            Route("/", lambda request: FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})),
            *routes,
            Mount("/files", files),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            Middleware(_Guarded, policy=policy),
        ],
        exception_handlers={HTTPException: _said_http, GeoAssetsError: _said, Exception: _broken},
    )


# -- answers ------------------------------------------------------------------------------------------------


def _columns(request: Request, settings: Settings, boxes: dict[str, Any]) -> dict[str, Any]:
    city = request.path_params["city"]
    settings.city(city)
    return {"city": city, "columns": boxes[city].columns if city in boxes else {"box": []}}


def _bounds(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        west = south = east = north = math.nan
    if not all(map(math.isfinite, (west, south, east, north))) or east < west or north < south:
        raise SourceError(f"bbox={text[:80]} is not west,south,east,north in degrees.")
    return west, south, east, north


class _Packed:
    """Bodies packed for the way, the last few kept: a page of many boxes asks for the same again."""

    MOST = 16

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def of(self, tag: str, body: bytes) -> bytes:
        if tag not in self._kept:
            while len(self._kept) >= self.MOST:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[tag] = gzip.compress(body, 6, mtime=0)
        return self._kept[tag]


def _endpoint(answer: Callable[[Request], Any], packed: _Packed) -> Callable[[Request], Response]:
    from starlette.responses import Response

    def respond(request: Request) -> Response:
        body = json.dumps(answer(request), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if len(body) >= SMALLEST_TO_PACK and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = packed.of(tag, body), "gzip"
        return Response(body, media_type="application/json", headers=headers)

    return respond


def _from(lake: Lake) -> Callable[[Request], Response]:
    """Files of a lake on object storage, whole."""
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    def respond(request: Request) -> Response:
        key = f"files/{request.path_params['key']}"
        if key.split("/")[1] not in KINDS or ".." in key.split("/"):
            raise HTTPException(404)
        try:
            body = lake.get_bytes(key)
        except (OSError, GeoAssetsError):
            raise HTTPException(404) from None
        return Response(body, media_type=mimetypes.guess_type(key)[0] or "application/octet-stream")

    return respond


# -- errors and guards --------------------------------------------------------------------------------------


async def _said(request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    status = 404 if isinstance(error, ConfigError) else 400 if isinstance(error, SourceError) else 500
    return JSONResponse({"error": str(error)}, status_code=status)


async def _said_http(request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    status = getattr(error, "status_code", 500)
    sentences = {404: "There is nothing at this address.", 405: "This server is only read: use GET."}
    return JSONResponse({"error": sentences.get(status, str(error))}, status_code=status)


async def _broken(request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    traceback.print_exception(error)
    sentence = f"{type(error).__name__} while answering; the terminal of geo-assets serve shows where."
    return JSONResponse({"error": sentence}, status_code=500)


class _Guarded:
    """Says with every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        of_splats = str(scope.get("path", "")).startswith("/files/")
        headers = {
            b"content-security-policy": (_OF_SPLATS if of_splats else self._policy).encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-resource-policy": b"same-origin",
        }

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers.items()]
            await send(message)

        run: Awaitable[None] = self._app(scope, receive, with_headers)
        await run


def _policy(style: str | None) -> str:
    """The page's content security policy; a style may fetch its tiles, letters and icons from where it wants."""
    own = dict(_OWN)
    if style is not None:
        parts = urlsplit(style)
        if parts.scheme not in ("http", "https") or not parts.netloc or set(style) & set(" ;,'\"\r\n"):
            raise ConfigError(f"--style {style} is not the http address of a MapLibre style (https://.../style.json).")
        for directive in ("connect-src", "img-src"):
            own[directive] += f" https: {parts.scheme}://{parts.netloc}"
    return "; ".join(f"{directive} {sources}" for directive, sources in own.items())
