"""Four level views of a panorama, 90 degrees wide each: what a splat can be trained on.

The panorama is equirectangular: its columns are turns of the camera, the middle one straight ahead, its rows
pitch. One that is lower than half its width lacks sky and ground alike. The half-pixel matters: pixel ``i`` covers
``i`` to ``i + 1``, so that its middle is at ``i + 0.5``.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.lake import Lake
from geo_assets.progress import Progress
from geo_assets.reconstruct.cameras import N_VIEWS, SPHERICAL, VIEW, view_rotations
from geo_assets.reconstruct.priors import turned
from geo_assets.settings import Reconstruct

Picture = npt.NDArray[np.uint8]

JPEG_QUALITY = 95
_DRAWN_BY = "geo_assets view 1"
"""Part of what a view's file says of itself; count it up when the drawing changes."""


def fits(width: float, height: float, *, whole: bool) -> bool:
    """Whether a panorama of this size can be used.

    Args:
        width: width [px] of 360 degrees.
        height: height [px].
        whole: whether it must reach from pole to pole; else it must hold the 90 degrees that the views show.
    """
    if not (width > 0 and height > 0):
        return False
    share = 2 * height / width
    return abs(share - 1) <= 0.02 if whole else 0.5 <= share <= 1.02


def view_size(width: int, max_image_px: int) -> int:
    """Side [px] of the views of a panorama: as fine as itself, if the settings allow."""
    return min(width // N_VIEWS, max_image_px)


def view_id(photo_id: str, view: int) -> str:
    """Image id of a view."""
    return f"{photo_id}_v{view}"


def views_of(panorama: Picture, size: int) -> list[Picture]:
    """The views [4] of a panorama, each [size, size, channels]: front, right, back, left.

    Args:
        panorama: pixels [height, width, channels], 8 bits each.
        size: side of a view; a much larger panorama is reduced first.
    """
    from PIL import Image

    width = N_VIEWS * size
    height = round(panorama.shape[0] * width / panorama.shape[1])
    if panorama.shape[:2] != (height, width):
        resized = Image.fromarray(panorama.squeeze()).resize((width, height), Image.Resampling.BOX)
        panorama = np.asarray(resized).reshape(height, width, panorama.shape[2])
    row, column = _front(size, height)
    # The views differ by a quarter of the width, which is a whole number of pixels.
    return [_sampled(panorama, row, column + view * size) for view in range(N_VIEWS)]


@functools.lru_cache(maxsize=2)
def _front(size: int, height: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Row and column [size, size] of the panorama for each pixel of the front view; the first pixel's middle is 0."""
    width = N_VIEWS * size
    across = (np.arange(size) + 0.5 - size / 2) / (size / 2)
    x, y = np.meshgrid(across, across)
    yaw, pitch_down = np.arctan(x), np.arctan2(y, np.hypot(x, 1))
    column = (yaw / (2 * np.pi) + 0.5) * width - 0.5
    row = pitch_down / np.pi * (width / 2) + height / 2 - 0.5
    return row.astype(np.float32), column.astype(np.float32)


def _sampled(picture: Picture, row: npt.NDArray[np.float32], column: npt.NDArray[np.float32]) -> Picture:
    """Bilinear samples; columns go round, rows end at the edge."""
    height, width = picture.shape[:2]
    top, left = np.floor(row), np.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    i = np.clip(np.stack([top, top + 1]).astype(np.int32), 0, height - 1)
    j = np.stack([left, left + 1]).astype(np.int32) % width
    upper = picture[i[0], j[0]] * (1 - right) + picture[i[0], j[1]] * right
    lower = picture[i[1], j[0]] * (1 - right) + picture[i[1], j[1]] * right
    return (upper * (1 - down) + lower * down + 0.5).astype(np.uint8)


def with_views(
    lake: Lake,
    city: str,
    box: str,
    images: pd.DataFrame,
    options: Reconstruct,
    log: Callable[[str], None] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """The images with four views in the place of each panorama, whose files lie under ``files/views``.

    A view that its home box has drawn of the same file is taken from there.

    Args:
        lake: holds the panoramas and gets the views.
        city: name of the city.
        box: name of the box that needs them.
        images: with priors; ``photo_id`` and ``view`` (null) among the columns.
        options: settings of the room.
        log: gets lines of progress.

    Returns:
        The images, and the ids of the panoramas that do not decode; those are left out.
    """
    if options.panoramas != "rig" or not (images.kind == SPHERICAL).any():
        return images, []
    panoramas, drawn, broken = pd.DataFrame(images[images.kind == SPHERICAL]), [], []
    progress = Progress(log or (lambda _: None), "panoramas cut into views", len(panoramas))
    for done, (photo_id, sha256, path, width, home) in enumerate(
        panoramas[["image_id", "sha256", "path", "width", "home_box"]].itertuples(index=False), start=1
    ):
        try:
            size = view_size(int(width), options.max_image_px)
            drawn += _drawn(lake, city, [box, home], photo_id, sha256, path, size)
        except SourceError:
            broken.append(str(photo_id))
        progress(done)
    whole = pd.DataFrame(panoramas[~panoramas.image_id.isin(broken)])
    both = pd.concat([pd.DataFrame(images[images.kind != SPHERICAL]), _view_rows(whole, drawn)])
    return both.sort_values("image_id", kind="stable").reset_index(drop=True), broken


def _view_rows(panoramas: pd.DataFrame, drawn: list[_View]) -> pd.DataFrame:
    """Four rows a panorama, for the views drawn of them."""
    rows = panoramas.loc[panoramas.index.repeat(N_VIEWS)]
    view = np.tile(np.arange(N_VIEWS), len(panoramas))
    rotations = [turned(r, view_rotations()[v]) for r, v in zip(rows.given_rotation, view, strict=True)]
    return rows.assign(
        image_id=[view_id(photo, v) for photo, v in zip(rows.photo_id, view, strict=True)],
        view=pd.array(view, "Int64"),
        kind=VIEW,
        width=[d.size for d in drawn],
        height=[d.size for d in drawn],
        path=[d.path for d in drawn],
        sha256=[d.sha256 for d in drawn],
        heading_deg=(rows.heading_deg + 90 * view) % 360,
        given_rotation=pd.Series(rotations, index=rows.index, dtype=object),
    )


@dataclass(frozen=True)
class _View:
    """A view's file."""

    path: str
    sha256: str
    size: int


def _drawn(lake: Lake, city: str, places: list[str], photo_id: str, sha256: str, path: str, size: int) -> list[_View]:
    """The files of a panorama's four views, drawn into the first of these boxes if none has them."""
    mark = f"{_DRAWN_BY} of {sha256} at {size}".encode()
    ids = [view_id(photo_id, view) for view in range(N_VIEWS)]
    for place in dict.fromkeys(places):
        keys = [lake.key("views", f"{image_id}.jpg", city=city, box=place) for image_id in ids]
        found = [_bytes_if_marked(lake, key, mark) for key in keys]
        if all(found):
            return [
                _View(k, hashlib.sha256(data or b"").hexdigest(), size) for k, data in zip(keys, found, strict=True)
            ]
    drawn = []
    for image_id, picture in zip(ids, views_of(_pixels(lake, path), size), strict=True):
        key, data = lake.key("views", f"{image_id}.jpg", city=city, box=places[0]), _jpeg(picture, mark)
        lake.put_bytes(key, data, sync_folder=False)
        drawn.append(_View(key, hashlib.sha256(data).hexdigest(), size))
    return drawn


def _bytes_if_marked(lake: Lake, key: str, mark: bytes) -> bytes | None:
    """A view's file, if it is there and says that it was drawn of the same panorama in the same way."""
    try:
        data = lake.get_bytes(key)
    except FileNotFoundError:
        return None
    return data if mark in data[:1024] and data.endswith(b"\xff\xd9") else None


def _pixels(lake: Lake, path: str) -> Picture:
    """Pixels of a panorama.

    Raises:
        SourceError: the file is not there or does not decode.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(lake.get_bytes(path))) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # a foreign file fails anywhere in the decoder: OSError, SyntaxError, struct.error, ...
        raise SourceError(f"The panorama {path} cannot be read ({type(error).__name__}: {error}).") from None


def _jpeg(picture: Picture, mark: bytes) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0, comment=mark)
    return sink.getvalue()
