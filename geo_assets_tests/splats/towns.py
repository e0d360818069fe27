"""A town of Gaussians as large as one likes: blocks with windows, roofs and streets between them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.splats.box import not_trained
from geo_assets.splats.gaussians import SH_0, Gaussians
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.ply import write_ply


def town(n: int, size_m: float = 400.0, degree: int = 1, seed: int = 0) -> Gaussians:
    """``n`` flat Gaussians on the facades, roofs and streets of eight by eight blocks around the origin."""
    rng = np.random.default_rng(seed)
    block, face = (
        rng.integers(0, 8, (n, 2)),
        rng.integers(0, 6, n),
    )  # two faces east-west, two north-south, roof, street
    along, across = rng.uniform(-0.5, 0.5, (2, n))
    width = size_m / 8 * 0.7
    height = size_m * (0.02 + 0.005 * ((block[:, 0] * 7 + block[:, 1] * 3) % 5))
    centre = (block + 0.5) * size_m / 8 - size_m / 2
    side = np.where(face % 2, 0.5, -0.5)
    x, y = (
        np.select([face < 2, face < 4], [side, along], along) * width + centre[:, 0],
        np.select([face < 2, face < 4], [along, side], across) * width + centre[:, 1],
    )
    z = np.where(face < 4, (across + 0.5) * height, height)
    street = face == 5
    ground = rng.uniform(-size_m / 2, size_m / 2, (n, 2))
    means = np.where(street[:, None], np.column_stack([ground, np.zeros(n)]), np.column_stack([x, y, z]))
    window = (np.sin(along * 30) * np.sin(across * 20) > 0.2) & (face < 4)
    walls = 0.5 + 0.4 * np.sin(np.column_stack([block[:, 0] * 2.1, block[:, 1] * 1.7 + 1, block.sum(axis=1) * 1.3 + 2]))
    colours = np.select([window[:, None], street[:, None], (face == 4)[:, None]], [0.2, 0.45, [0.6, 0.35, 0.25]], walls)
    colours = colours + rng.normal(0, 0.03, (n, 3))
    scales = np.full((n, 3), np.sqrt(size_m**2 * 1.6 / n) * 0.8)
    scales[np.arange(n), np.select([face < 2, face < 4], [0, 1], 2)] = size_m * 5e-5
    harmonics = rng.normal(0, 0.05, (n, (degree + 1) ** 2, 3))
    harmonics[:, 0] = (colours - 0.5) / SH_0
    return Gaussians.of(means, np.log(scales), np.tile([1, 0, 0, 0], (n, 1)), np.full(n, 3.0), harmonics)


def dome(n: int, radius_m: float) -> Gaussians:
    """A sky, light below and blue above, around the origin."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(n, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    up = directions[:, 2:]
    colours = (1 - up) * [0.85, 0.88, 0.9] + up * [0.3, 0.5, 0.85]
    size = np.log(radius_m * np.sqrt(2 * np.pi / n))
    quats = np.tile([1, 0, 0, 0], (n, 1))
    return Gaussians.of(
        directions * radius_m, np.full((n, 3), size), quats, np.full(n, 4.0), ((colours - 0.5) / SH_0)[:, None]
    )


def put_box(lake: Lake, city: str, box: str, frame: LocalFrame, place: Gaussians, sky: Gaussians | None = None) -> None:
    """Publish a box as if it had been trained."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_ply(folder / "splat.ply", place)
        if sky is not None:
            write_ply(folder / "sky.ply", sky)
        (folder / "splat.geo.json").write_text(json.dumps(splat_reference(frame)))
        lake.publish(folder, lake.key("splats", city=city, box=box))
    row = not_trained("trained").splat.assign(n_splats=len(place))
    lake.write("splat_ply", row, city=city, box=box)
