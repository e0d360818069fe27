"""What a person looks at: cameras against their GPS from above and from the side, and how the pairs are tied."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from geo_assets.pictures import figure_png, small_jpeg

Array = npt.NDArray[np.float64]

MARGIN_M = 15.0
CORRIDOR_M = 25.0
"""Half the width of the street that is seen from the side."""

_GPS, _CAMERA, _PAIR, _LOST = "#2f6fb3", "#c8372d", "#9a9a9a", "#111111"
_PREVIEW_PX = 600
_PREVIEW_LINES = 60


def prior_map(images: pd.DataFrame, box: str) -> bytes:
    """The positions of the box (filled) and of its margin (open) with their headings, as PNG."""
    figure, axes = _plan("images by position", _places(images))
    at_home = images.home_box == box
    for chosen, filled, label in ((at_home, True, "in the box"), (~at_home, False, "in the margin")):
        part = images[chosen]
        axes.scatter(
            part.east_m, part.north_m, s=12, edgecolors=_GPS, facecolors=_GPS if filled else "none", lw=0.8, label=label
        )
    known = images[images.heading_deg.notna()]
    angle = np.radians(known.heading_deg.to_numpy(float))
    axes.quiver(
        known.east_m, known.north_m, np.sin(angle), np.cos(angle), color=_GPS, width=0.003, scale=35, headwidth=3
    )
    axes.legend(fontsize=7, loc="best")
    return figure_png(figure)


def pair_pictures(images: pd.DataFrame, pairs: pd.DataFrame) -> bytes:
    """Verified pairs from above, the darker the more inliers, beside the histogram of inliers, as PNG."""
    figure = Figure(figsize=(7.2, 3.4), dpi=72, layout="constrained")
    plan, histogram = figure.subplots(1, 2)
    _dress(plan, "verified pairs", _places(images))
    verified = pd.DataFrame(pairs[pairs.verified.astype(bool)])
    plan.add_collection(_lines(images, verified))
    plan.scatter(images.east_m, images.north_m, s=7, color=_GPS, zorder=2)
    tried = pairs.n_inliers.clip(lower=1)
    bins = np.geomspace(1, max(float(tried.max()) if len(tried) else 0, 1000), 31)
    histogram.hist(tried[~pairs.verified.astype(bool)], bins, color=_PAIR, label="rejected")
    histogram.hist(tried[pairs.verified.astype(bool)], bins, color=_CAMERA, alpha=0.8, label="verified")
    histogram.set(xscale="log")
    histogram.set_xlabel("inliers", fontsize=7)
    histogram.set_ylabel("pairs", fontsize=7)
    histogram.tick_params(labelsize=7)
    histogram.legend(fontsize=7)
    return figure_png(figure)


def model_map(images: pd.DataFrame, cameras: pd.DataFrame, points: Array) -> bytes:
    """Registered cameras against their GPS from above, over the model's points, as PNG.

    Args:
        images: rows of ``gps_db``.
        cameras: rows of ``model_cameras``.
        points: points of the largest model [n, 6]: east, north, up [m], red, green, blue (0 to 255).
    """
    # The points do not count: a few of them kilometres away would hide the street.
    figure, axes = _plan("cameras against their GPS", np.vstack([_places(images), _places(cameras)]))
    if len(points):
        axes.scatter(points[:, 0], points[:, 1], s=0.6, c=points[:, 3:6] / 255, lw=0, zorder=0, rasterized=True)
    both = cameras.merge(images, on="image_id", suffixes=("", "_prior"))
    ends = both[["east_m", "north_m", "east_m_prior", "north_m_prior"]].to_numpy(float).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(ends), colors=_PAIR, linewidths=0.5, zorder=1))
    stands = images.image_id.isin(cameras.image_id)
    axes.scatter(images.east_m[stands], images.north_m[stands], s=8, color=_GPS, lw=0, zorder=2, label="GPS")
    axes.scatter(cameras.east_m, cameras.north_m, s=8, color=_CAMERA, lw=0, zorder=3, label="camera")
    lost = images[~stands]
    if len(lost):
        label = f"not registered ({len(lost):,})"
        axes.scatter(lost.east_m, lost.north_m, s=14, color=_LOST, marker="x", lw=0.8, zorder=4, label=label)
    axes.legend(fontsize=7, loc="best", framealpha=0.85, handletextpad=0.3)
    return figure_png(figure)


def model_side(images: pd.DataFrame, cameras: pd.DataFrame, points: Array) -> bytes:
    """The longest street of a model from the side and along it: points, cameras and their GPS, as PNG.

    Args:
        images: rows of ``gps_db``.
        cameras: rows of ``model_cameras``.
        points: points of the largest model [n, 6]: east, north, up [m], red, green, blue (0 to 255).
    """
    both = cameras.merge(images[["image_id", "sequence_id", *_ENU]], on="image_id", suffixes=("", "_prior"))
    middle, along = _longest_street(both)
    axes_of_street = np.array([[along[0], along[1], 0.0], [along[1], -along[0], 0.0], [0.0, 0.0, 1.0]])

    def seen(enu: Array) -> Array:
        return (enu - np.array([*middle, 0.0])) @ axes_of_street.T

    stands, prior = seen(both[list(_ENU)].to_numpy(float)), seen(both[[f"{c}_prior" for c in _ENU]].to_numpy(float))
    near = np.abs(stands[:, 1]) <= CORRIDOR_M
    stands, prior = stands[near], prior[near]
    if not len(stands):
        stands = prior = np.zeros((1, 3))
    start, end = stands[:, 0].min() - MARGIN_M, stands[:, 0].max() + MARGIN_M
    cloud = seen(points[:, :3]) if len(points) else np.zeros((0, 3))
    shown = (np.abs(cloud[:, 1]) <= CORRIDOR_M) & (cloud[:, 0] >= start) & (cloud[:, 0] <= end)
    cloud, colours = cloud[shown], points[shown, 3:6] / 255
    heights = np.concatenate([stands[:, 2], prior[:, 2]])
    # Facades are of interest, a stray point in the sky is not.
    top = max(heights.max(), float(np.percentile(cloud[:, 2], 97)) if len(cloud) else -np.inf)
    low, high = heights.min() - 6, min(top, float(np.median(stands[:, 2])) + 40) + 4
    # In each panel all directions have one scale; the side takes the whole width.
    inches, height = 9.0, high - low
    rows = [max(0.5, 8.3 * height / (end - start)), max(1.0, 4.3 * height / (2 * CORRIDOR_M))]
    figure = Figure(figsize=(inches, min(sum(rows) + 1.35, 8.0)), dpi=88, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=rows, width_ratios=[4.3, 4.0])
    side, front, words = (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )
    panels = (
        (side, 0, "from the side", "along the street [m]", (start, end)),
        (front, 1, "in its direction", "across the street [m]", (-CORRIDOR_M, CORRIDOR_M)),
    )
    handles: list[Artist] = []
    for axes, column, title, label, limits in panels:
        axes.scatter(cloud[:, column], cloud[:, 2], s=1.5, c=colours, lw=0, zorder=0, rasterized=True)
        ends = np.stack([stands[:, [column, 2]], prior[:, [column, 2]]], axis=1)
        axes.add_collection(LineCollection(list(ends), colors=_PAIR, linewidths=0.5, zorder=1))
        handles = [
            axes.scatter(prior[:, column], prior[:, 2], s=9, color=_GPS, lw=0, zorder=2, label="GPS"),
            axes.scatter(stands[:, column], stands[:, 2], s=9, color=_CAMERA, lw=0, zorder=3, label="camera"),
        ]
        axes.set_aspect("equal", adjustable="box")
        axes.set(xlim=limits, ylim=(low, high))
        axes.set_title(title, fontsize=8)
        axes.set_xlabel(label, fontsize=7)
        axes.set_ylabel("up [m]", fontsize=7)
        axes.tick_params(labelsize=7)
    words.axis("off")
    words.legend(handles=handles, fontsize=8, loc="upper left", frameon=False, handletextpad=0.3)
    apart = float(np.median(np.abs(stands[:, 2] - prior[:, 2])))
    said = f"the longest street, {end - start - 2 * MARGIN_M:,.0f} m, {len(stands):,} cameras\n"
    words.text(0.03, 0.1, said + f"half of them within {apart:.1f} m of their GPS in height", fontsize=8, va="bottom")
    return figure_png(figure)


def fringe_map(
    images: pd.DataFrame, pairs: pd.DataFrame, box: str, bounds_m: tuple[float, float, float, float] | None = None
) -> bytes:
    """The box with the strips of its neighbours, and the pairs across the border in red, as PNG.

    Args:
        images: rows of ``gps_db``.
        pairs: rows of ``match_pairs``.
        box: name of the box.
        bounds_m: west, south, east, north of the box in its frame [m].
    """
    figure, axes = _plan("pairs across the border", _places(images))
    if bounds_m is not None:
        west, south, east, north = bounds_m
        edge = Rectangle((west, south), east - west, north - south, fill=False, ec=_PAIR, ls="--", lw=0.8, zorder=0)
        axes.add_patch(edge)
    home = images.set_index("image_id").home_box
    across = pairs[pairs.image_id_a.map(home).to_numpy() != pairs.image_id_b.map(home).to_numpy()]
    verified = across.verified.astype(bool)
    axes.add_collection(_lines(images, pd.DataFrame(across[~verified]), (0.6, 0.6, 0.6), 0.25))
    axes.add_collection(_lines(images, pd.DataFrame(across[verified]), (0.78, 0.22, 0.18), 0.35))
    good = pairs[pairs.verified.astype(bool)]
    loose = ~images.image_id.isin([*good.image_id_a, *good.image_id_b])
    at_home = images.home_box == box
    handles = [
        Line2D([], [], color=_CAMERA, lw=1, label=f"verified across ({int(verified.sum()):,} of {len(across):,})"),
        axes.scatter(images.east_m[at_home], images.north_m[at_home], s=7, color=_GPS, lw=0, zorder=2, label=box),
    ]
    neighbours = sorted(set(images.home_box[~at_home]))
    shades = colormaps["tab10"].colors[1:]  # type: ignore[attr-defined]
    for number, name in enumerate(neighbours):
        part = images[images.home_box == name]
        colour = shades[(number * 2 + 1) % len(shades)]
        handles.append(
            axes.scatter(
                part.east_m, part.north_m, s=10, facecolors="none", edgecolors=[colour], lw=0.9, zorder=2, label=name
            )
        )
    if loose.any():
        label = f"no verified pair ({int(loose.sum()):,})"
        lost = images[loose]
        handles.append(
            axes.scatter(lost.east_m, lost.north_m, s=16, color=_LOST, marker="x", lw=0.8, zorder=3, label=label)
        )
    axes.legend(handles=handles, fontsize=6, loc="best", framealpha=0.85, handletextpad=0.3)
    return figure_png(figure)


@dataclass(frozen=True)
class PairPhotos:
    """Two photos and where their matches lie.

    Attributes:
        title: a line or two about the pair.
        jpegs: bytes of both photos.
        keypoints: pixels of both photos' features, [n, 2] and [m, 2].
        matches: index of the feature in the first and in the second photo, [k, 2].
        good: whether the pair counts; the lines of others are red.
    """

    title: str
    jpegs: tuple[bytes, bytes]
    keypoints: tuple[Array, Array]
    matches: npt.NDArray[np.integer]
    good: bool = True


def pair_preview(pairs: Sequence[PairPhotos]) -> bytes:
    """Each pair's photos side by side with lines between the matches that agree, pairs below each other, as JPEG.

    Of many matches some are drawn, spread evenly over the picture; the hue follows their height in the first photo.
    """
    strips = [_strip(pair) for pair in pairs]
    if not strips:
        strips = [Image.new("RGB", (_PREVIEW_PX, 20), "white")]
    sheet = Image.new("RGB", (_PREVIEW_PX, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return small_jpeg(sheet)


def _strip(pair: PairPhotos) -> Image.Image:
    """One pair: its title above two photos of one height."""
    photos = [_opened(data) for data in pair.jpegs]
    gap, text_px = 4, 15 * (1 + pair.title.count("\n")) + 3
    # Both photos have one height, and together with the gap the width of the sheet.
    height = round((_PREVIEW_PX - gap) / sum(photo.width / photo.height for photo in photos))
    scaled = [photo.resize((max(1, round(photo.width * height / photo.height)), height)) for photo in photos]
    strip = Image.new("RGB", (_PREVIEW_PX, height + text_px + gap), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((2, 2), pair.title, fill="black", font=ImageFont.load_default(size=12))
    offsets = [0, scaled[0].width + gap]
    for photo, left in zip(scaled, offsets, strict=True):
        strip.paste(photo, (left, text_px))
    ends = [
        points[pair.matches[:, side]] * (height / photo.height) + [left, text_px]
        for side, (points, photo, left) in enumerate(zip(pair.keypoints, photos, offsets, strict=True))
    ]
    order = np.lexsort((ends[0][:, 0], ends[0][:, 1]))
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _PREVIEW_LINES)).round().astype(int)]
    for index in chosen:
        level = float((ends[0][index, 1] - text_px) / height)
        colour = _rgb("viridis", level) if pair.good else (215, 40, 30)
        first, second = (tuple(end[index].tolist()) for end in ends)
        draw.line([first, second], fill=colour, width=1)
        for x, y in (first, second):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=colour)
    return strip


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as photo:
        return photo.convert("RGB")


def _rgb(name: str, level: float) -> tuple[int, int, int]:
    red, green, blue, _ = colormaps[name](level, bytes=True)
    return int(red), int(green), int(blue)


_ENU = ("east_m", "north_m", "up_m")


def _longest_street(cameras: pd.DataFrame) -> tuple[Array, Array]:
    """A point and the direction [2] of the sequence that reaches furthest."""
    best, found = -1.0, (np.zeros(2), np.array([1.0, 0.0]))
    for _, run in cameras.groupby("sequence_id", sort=True):
        xy = _places(run)
        middle = xy.mean(0)
        direction = np.linalg.svd(xy - middle, full_matrices=False)[2][0]
        reach = float(np.ptp((xy - middle) @ direction))
        if reach > best:
            # West to east, so that the picture reads as a map does.
            best, found = reach, (middle, direction * (1.0 if direction[0] >= 0 else -1.0))
    return found


def _lines(
    images: pd.DataFrame,
    pairs: pd.DataFrame,
    colour: tuple[float, float, float] = (0.27, 0.27, 0.27),
    faintest: float = 0.1,
) -> LineCollection:
    """Lines between the images of pairs, the fuller the more inliers."""
    place = images.set_index("image_id")[["east_m", "north_m"]]
    ends = np.stack([place.loc[pairs[c]].to_numpy(float) for c in ("image_id_a", "image_id_b")], axis=1)
    strength = np.clip(pairs.n_inliers.to_numpy(float) / 200, faintest, 1)
    shades = np.column_stack([np.tile(colour, (len(pairs), 1)), strength])
    return LineCollection(list(ends), colors=shades, linewidths=0.6, zorder=1)


def _places(rows: pd.DataFrame) -> Array:
    """East and north [n, 2] in metres."""
    return rows[["east_m", "north_m"]].to_numpy(float)


def _plan(title: str, places: Array) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 4.2), dpi=80, layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, places)
    return figure, axes


def _dress(axes: Axes, title: str, places: Array) -> None:
    """Title, axes in metres, and a square window around places [n, 2] in which both scales are the same."""
    axes.set_aspect("equal", adjustable="box")
    if len(places):
        low, high = places.min(0), places.max(0)
        middle, half = (low + high) / 2, (high - low).max() / 2 + MARGIN_M
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("east [m]", fontsize=7)
    axes.set_ylabel("north [m]", fontsize=7)
    axes.tick_params(labelsize=7)
