import numpy as np
import pandas as pd
import pytest

from geo_assets.geotag.pictures import density_map, level_map
from geo_assets.pictures import MAX_BYTES


@pytest.mark.parametrize("n", [0, 1, 60_000])
def test_a_density_map_is_a_small_png(n):
    draw = np.random.default_rng(0)
    png = density_map(draw.uniform(-180, 180, n), draw.uniform(-90, 90, n), f"{n} photos")
    assert png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_a_level_map_is_a_small_png(n):
    draw = np.random.default_rng(0)
    cells = pd.DataFrame(
        {
            "level": np.zeros(n, np.int64),
            "cell_id": np.arange(n),
            "lon": draw.uniform(-180, 180, n),
            "lat": draw.uniform(-90, 90, n),
            "n_photos": draw.integers(1, 99, n),
        }
    )
    root = pd.DataFrame({"level": [1], "cell_id": [0], "lon": [0.0], "lat": [0.0], "n_photos": [1]}).head(n)
    png = level_map(pd.concat([cells, root]))
    assert png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES
