import numpy as np
import pytest

from geo_assets.geodesy import LocalFrame, ecef, geodetic, haversine_m


@pytest.mark.parametrize("lon", [-179.9, -70.0, 0.0, 11.5, 180.0])
@pytest.mark.parametrize("lat", [-89.9, -33.0, 0.0, 48.1, 89.9])
@pytest.mark.parametrize("alt", [-50.0, 0.0, 8_800.0])
def test_ecef_round_trip(lon: float, lat: float, alt: float) -> None:
    back = geodetic(ecef(lon, lat, alt))
    assert (back[0] - lon) % 360 == pytest.approx(0, abs=1e-9) or (back[0] - lon) % 360 == pytest.approx(360, abs=1e-9)
    assert back[1] == pytest.approx(lat, abs=1e-9)
    assert back[2] == pytest.approx(alt, abs=1e-4)


def test_known_points() -> None:
    assert ecef(0, 0, 0) == pytest.approx([6378137.0, 0, 0])
    assert ecef(0, 90, 0) == pytest.approx([0, 0, 6356752.314245], abs=1e-6)
    # pyproj, EPSG:4979 -> EPSG:4978
    pyproj = pytest.importorskip("pyproj")
    transformer = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    assert ecef(11.5, 48.1, 565.0) == pytest.approx(transformer.transform(11.5, 48.1, 565.0), abs=1e-6)


def test_local_frame_round_trip_and_axes() -> None:
    frame = LocalFrame(-122.4, 37.8, 12.0)
    points = np.array([[0.0, 0.0, 0.0], [250.0, -100.0, 30.0], [-600.0, 900.0, -5.0]])
    assert frame.enu(*frame.geodetic(points)) == pytest.approx(points, abs=1e-5)
    north = frame.enu(-122.4, 37.801, 12.0)
    assert north[1] > 100
    assert abs(north[0]) < 1e-6
    homogeneous = frame.ecef_from_enu @ np.array([250.0, -100.0, 30.0, 1.0])
    assert homogeneous[:3] == pytest.approx(ecef(*frame.geodetic(points[1])), abs=1e-4)


def test_haversine_crosses_the_antimeridian() -> None:
    assert haversine_m(179.999, 0, -179.999, 0) == pytest.approx(222.39, abs=0.1)
