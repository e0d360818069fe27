"""The user's masks: what of a photo shows the vehicle, a watermark or a hand, and must not be matched."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ConfigError, SourceError
from geo_assets.lake import Lake
from geo_assets.reconstruct.cameras import VIEW
from geo_assets.reconstruct.panoramas import views_of

Mask = npt.NDArray[np.bool_]

_MAX_STRETCH = 0.02
_FEW = 3


@dataclass(frozen=True)
class _Made:
    """A mask as it fits a photo: PNG bytes, and the hash of its pixels."""

    png: bytes
    sha256: str


@dataclass
class Masks:
    """The masks of a city's folder and the warnings about those that cannot be used."""

    folder: Path
    warnings: list[str] = field(default_factory=list)
    _by_name: dict[str, Path] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], _Made | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look once at what is there.

        Raises:
            ConfigError: there is no such folder.
        """
        if not self.folder.is_dir():
            raise ConfigError(
                f"The folder of masks '{self.folder.name}' does not exist. Make it, or take masks out of the city's settings."
            )
        self._by_name = {path.stem: path for path in sorted(self.folder.iterdir()) if path.suffix.lower() == ".png"}

    def path_of(self, photo_id: str, sequence_id: str, make: object, model: object) -> Path | None:
        """The mask of a photo: its own, its sequence's or its camera's, whichever is there first."""
        camera = " ".join(part for part in (make, model) if isinstance(part, str) and part)
        return next((self._by_name[n] for n in (photo_id, sequence_id, camera) if n and n in self._by_name), None)

    def made(self, path: Path, width: int, height: int, view: int | None) -> _Made | None:
        """The mask in the size of a photo or view; None, and a warning, where it cannot be used."""
        wanted = (path, width, height, view)
        if wanted not in self._made:
            try:
                pixels = mask_pixels(path, width, height, view)
                self._made[wanted] = _Made(_png(pixels), _hash(pixels))
            except SourceError as error:
                self._made[wanted] = None
                if str(error) not in self.warnings:
                    self.warnings.append(str(error))
        return self._made[wanted]


def mask_pixels(path: Path, width: int, height: int, view: int | None = None) -> Mask:
    """The mask [height, width] of a photo: false where it is to be ignored.

    Args:
        path: PNG; black is ignored, of a colour picture only what is black in all channels.
        width: width of the photo [px].
        height: height of the photo [px].
        view: which view of a panorama the photo is; the mask is the panorama's then.

    Raises:
        SourceError: the file is no PNG, has another shape than the photo, or ignores all of it.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            # A palette or an alpha channel would make of black what it likes.
            plain = image.convert("RGB") if image.mode in ("P", "PA", "RGBA", "LA", "RGB") else image
            pixels = np.asarray(plain)
    except Exception as error:  # a foreign file fails anywhere in the decoder
        raise SourceError(f"The mask {path.name} is not a PNG that can be read ({type(error).__name__}).") from None
    kept = pixels.reshape(*pixels.shape[:2], -1).max(axis=2) > 0
    if view is not None:
        kept = views_of(kept[..., None].astype(np.uint8) * 255, width)[view][..., 0] >= 128
    elif abs(kept.shape[1] * height / (kept.shape[0] * width) - 1) > _MAX_STRETCH:
        raise SourceError(
            f"The mask {path.name} has {kept.shape[1]} x {kept.shape[0]} pixels, which is another shape than the photo's {width} x {height}."
        )
    if kept.shape != (height, width):
        resized = Image.fromarray(kept).resize((width, height), Image.Resampling.NEAREST)
        kept = np.asarray(resized, bool)
    if not kept.any() and view is None:
        raise SourceError(f"The mask {path.name} ignores all of the photo.")
    return kept


def with_masks(
    lake: Lake, city: str, box: str, images: pd.DataFrame, folder: Path | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The images with ``mask_path`` (under ``files/masks``) and ``mask_sha256``, null where there is no mask.

    Args:
        lake: gets the masks.
        city: name of the city.
        box: name of the box.
        images: ``image_id``, ``photo_id``, ``sequence_id``, ``make``, ``model``, ``width``, ``height``, ``kind``, ``view``.
        folder: the user's masks; None where there are none.

    Returns:
        The images, and figures: how many have a mask, how many masks cannot be used, and why.

    Raises:
        ConfigError: the folder does not exist.
    """
    paths: list[str | None] = [None] * len(images)
    hashes: list[str | None] = [None] * len(images)
    if folder is None:
        return images.assign(mask_path=paths, mask_sha256=hashes), {}
    masks = Masks(folder)
    columns = ["photo_id", "sequence_id", "make", "model", "width", "height", "kind", "view", "image_id"]
    for at, (photo, sequence, make, model, width, height, kind, view, image_id) in enumerate(
        images[columns].itertuples(index=False)
    ):
        path = masks.path_of(photo, sequence, make, model)
        made = masks.made(path, int(width), int(height), int(view) if kind == VIEW else None) if path else None
        if made is None:
            continue
        key = lake.key("masks", f"{image_id}.png", city=city, box=box)
        if not (lake.exists(key) and lake.get_bytes(key) == made.png):
            lake.put_bytes(key, made.png, sync_folder=False)
        paths[at], hashes[at] = key, made.sha256
    figures: dict[str, Any] = {"n_masked": sum(p is not None for p in paths), "n_bad_masks": len(masks.warnings)}
    if masks.warnings:
        figures["bad_masks"] = " ".join(masks.warnings[:_FEW])
    return images.assign(mask_path=paths, mask_sha256=hashes), figures


def _png(mask: Mask) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(sink, "PNG")
    return sink.getvalue()


def _hash(mask: Mask) -> str:
    """Of the pixels, not of the PNG: another version of the encoder must not make features anew."""
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()
