"""Made-up cities of boxes along streets whose true cameras are known, as models with the errors that models have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import METRES_PER_DEGREE, Bounds, Grid
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.frames import Array, Similarity, align, quaternion_from_rotation
from geo_assets.reconstruct.joint import Part
from geo_assets.tables import TABLES

LON, LAT, ALT_M = 11.5, 48.1, 500.0
SIGMA = np.array([3.0, 3.0, 10.0])


@dataclass
class Town:
    """Boxes of a grid; two streets cross in each, along which cars have driven.

    Attributes:
        rows, columns: how many boxes.
        box_m: side of a box [m].
        margin_m: cameras this far outside a box are in its model too.
        every_m: distance of the cameras along a street.
        bias_m: standard deviation of the error that all positions of a box share, beside their own.
        noise_m, noise_deg: errors of a camera in a model.
        streets: which streets a box has: "both" or only "east".
    """

    rows: int = 2
    columns: int = 2
    box_m: float = 120.0
    margin_m: float = 20.0
    every_m: float = 4.0
    bias_m: float = 0.0
    noise_m: float = 0.01
    noise_deg: float = 0.05
    streets: str = "both"
    seed: int = 0
    truth: dict[str, tuple[Array, Array]] = field(default_factory=dict)  # place in the town's frame, world_from_camera

    def frame(self) -> LocalFrame:
        """The town's frame, whose origin is the south-western corner."""
        return LocalFrame(LON, LAT, ALT_M)

    def frame_of(self, row: int, column: int) -> LocalFrame:
        """The frame of a box: its centre, at a height of its own."""
        east, north = (column + 0.5) * self.box_m, (row + 0.5) * self.box_m
        lon = LON + east / (METRES_PER_DEGREE * np.cos(np.radians(LAT)))
        return LocalFrame(lon, LAT + north / METRES_PER_DEGREE, ALT_M + 3.0 * row - 2.0 * column)

    def grid(self) -> tuple[Bounds, Grid]:
        """The bounds and boxes of the town, as settings would have them."""
        grid = Grid(LON, LAT, self.box_m, self.rows, self.columns)
        north, east = LAT + self.rows * grid.step_lat, LON + self.columns * grid.step_lon
        return Bounds(LON, LAT, east, north), grid

    def parts(self, *, aligned: bool = True) -> list[Part]:
        """A model of each box, placed by its positions alone unless it is to stay in a frame of its own."""
        rng = np.random.default_rng(self.seed)
        names, places, headings = self._cameras()
        forward = np.column_stack([np.sin(headings), np.cos(headings), rng.normal(0, 0.02, len(names))])
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        axes = np.stack([right, np.cross(forward, right), forward], axis=2)
        self.truth = dict(zip(names, zip(places, axes, strict=True), strict=True))
        fixes = places + rng.normal(0, SIGMA, places.shape)
        return [
            self._part(row, column, names, places, axes, fixes, rng, aligned)
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    def error_m(self, part: Part, similarity: Similarity) -> float:
        """How far the middle of a part is from where it truly is, horizontally [m]."""
        found = self.frame().enu(*part.frame.geodetic(similarity(part.centres)))
        true = np.array([self.truth[i][0] for i in part.image_ids])
        return float(np.hypot(*(found - true).mean(0)[:2]))

    def tilt_deg(self, part: Part, similarity: Similarity) -> float:
        """How far the axes of a part's cameras are from the true ones, as a rotation of the whole [deg]."""
        to_town = self.frame().enu_from_ecef_rotation @ part.frame.enu_from_ecef_rotation.T
        found = to_town @ similarity.rotation @ part.rotations.transpose(0, 2, 1)
        true = np.array([self.truth[i][1] for i in part.image_ids])
        return float(np.degrees((Rotation.from_matrix(found) * Rotation.from_matrix(true).inv()).mean().magnitude()))

    def _cameras(self) -> tuple[list[str], Array, Array]:
        """Names, places in the town's frame [n, 3] and headings [rad] along the streets through the boxes' middles."""
        names, places, headings = [], [], []
        kinds: list[tuple[str, int, float, Callable[[float, float], tuple[float, float]]]] = [
            ("e", self.rows, self.columns * self.box_m, lambda along, across: (along, across))
        ]
        if self.streets == "both":
            kinds.append(("n", self.columns, self.rows * self.box_m, lambda along, across: (across, along)))
        for kind, count, length, where in kinds:
            for street in range(count):
                for number, along in enumerate(np.arange(0, length, self.every_m)):
                    names.append(f"{kind}{street}_{number}")
                    east, north = where(float(along), (street + 0.5) * self.box_m)
                    places.append((east, north, 2.0 + 0.02 * north + 3 * np.sin(along / 60)))
                    headings.append(np.pi / 2 if kind == "e" else 0.0)
        return names, np.array(places), np.array(headings)

    def _part(
        self,
        row: int,
        column: int,
        names: list[str],
        places: Array,
        axes: Array,
        fixes: Array,
        rng: np.random.Generator,
        aligned: bool,
    ) -> Part:
        low = np.array([column, row]) * self.box_m - self.margin_m
        inside = ((places[:, :2] >= low) & (places[:, :2] < low + self.box_m + 2 * self.margin_m)).all(axis=1)
        chosen = np.flatnonzero(inside)
        frame, town = self.frame_of(row, column), self.frame()
        to_box = frame.enu_from_ecef_rotation @ town.enu_from_ecef_rotation.T
        centres = frame.enu(*town.geodetic(places[chosen])) + rng.normal(0, self.noise_m, (len(chosen), 3))
        shake = Rotation.from_rotvec(rng.normal(0, np.radians(self.noise_deg), (len(chosen), 3))).as_matrix()
        rotations = (to_box @ axes[chosen] @ shake).transpose(0, 2, 1)
        bias = rng.normal(0, self.bias_m, 3) * [1, 1, 2]
        priors = frame.enu(*town.geodetic(fixes[chosen])) + bias
        turn = Rotation.random(rng=rng).as_matrix()
        centres, rotations = (centres @ turn.T) / 7 + [5, -3, 8], rotations @ turn.T
        sigma = np.tile(SIGMA, (len(chosen), 1))
        if aligned:
            placed = align(centres, rotations, priors, sigma).similarity
            centres, rotations = placed(centres), rotations @ placed.rotation.T
        return Part(f"r{row:02d}c{column:02d}/0", [names[i] for i in chosen], centres, rotations, priors, sigma, frame)


def put_part(lake: Lake, city: str, part: Part, homes: dict[str, str], **known: Any) -> None:
    """Write the tables of a box with one placed model, as mapping would."""
    box, component = part.name.split("/")
    where = BoxPartition(city=city, box=box)
    origin = [part.frame.lon, part.frame.lat, part.frame.alt_m]
    places = ("east_m", "north_m", "up_m")
    rows = pd.DataFrame({"image_id": part.image_ids, "home_box": [homes[i] for i in part.image_ids]})
    images = rows.assign(**dict(zip(places, part.priors.T, strict=True)))
    images = images.assign(sigma_xy_m=part.sigma_m[:, 0], sigma_z_m=part.sigma_m[:, 2])
    images = images.reindex(columns=TABLES["gps_db"].column_names).astype(object)
    lake.write("gps_db", images, note={"origin": origin}, **where)
    quaternions = np.array([quaternion_from_rotation(rotation) for rotation in part.rotations]).T
    cameras = rows.assign(component=int(component), **dict(zip(places, part.centres.T, strict=True)))
    cameras = cameras.assign(**dict(zip(("qw", "qx", "qy", "qz"), quaternions, strict=True)))
    lake.write("model_cameras", cameras.reindex(columns=TABLES["model_cameras"].column_names), **where)
    model: dict[str, Any] = {"component": int(component), "status": "placed", "n_registered": len(rows)}
    model |= dict(zip(("origin_lon", "origin_lat", "origin_alt_m"), origin, strict=True))
    model["path"] = lake.key("models", component, **where)
    lake.write("sparse_models", TABLES["sparse_models"].frame([model | known]), **where)


def homes_of(town: Town, parts: list[Part]) -> dict[str, str]:
    """The box that each camera of a town lies in."""
    homes = {}
    for image_id in {i for part in parts for i in part.image_ids}:
        column, row = (int(v) for v in town.truth[image_id][0][:2] // town.box_m)
        homes[image_id] = f"r{row:02d}c{column:02d}"
    return homes
