"""Photos changed as the world changes them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

SHARE = 0.2


def with_banner(jpeg: bytes, seed: int, *, top: bool = False) -> bytes:
    """The photo with a textured banner over a fifth of its rows, as a car's bonnet or a dashboard shows it.

    The same seed gives the same banner at the same place: to a matcher it is the best match of every pair. EXIF
    is kept.
    """
    rng = np.random.default_rng(seed)
    with Image.open(io.BytesIO(jpeg)) as photo:
        exif, picture = photo.info.get("exif", b""), photo.convert("RGB")
    width, height = picture.width, round(SHARE * picture.height)
    noise = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    banner = noise.resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(banner)
    for _ in range(12):
        at = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        draw.text(at, "ACME DRIVE 0800-123456", fill=(255, 255, 255))
    picture.paste(banner, (0, 0 if top else picture.height - height))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92, exif=exif)
    return out.getvalue()
