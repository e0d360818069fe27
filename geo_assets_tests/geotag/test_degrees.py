from pathlib import Path

import numpy as np
import pytest

from geo_assets.geotag.degrees import number_of, position_of

NEW_HAVEN = (-(72 + 55 / 60 + 43 / 3600), 41 + 18 / 60 + 40 / 3600)


@pytest.mark.parametrize(
    "text",
    [
        "41° 18′ 40″ N, 72° 55′ 43″ W",
        "72° 55′ 43″ W, 41° 18′ 40″ N",
        "41°18′40″N72°55′43″W",
        "N41°18'40\" W72°55'43\"",
        "41° 18' 40'' n, 72° 55' 43'' w / 41.3111; -72.9286",
        "41º\u00a018’ 40” N; 72º 55’ 43” W",
        "41&deg; 18&prime; 40&Prime; N, 72&deg; 55&prime; 43&Prime; W",
        "41d18m40s N 72d 55m 43s W",
        "41:18:40 North, 72:55:43 West",
        "41 18 40 N 72 55 43 W",
        "41 18 40 −72 55 43",
        "41° 18.6666667′ N, 72° 55,7166667′ W",
        "41.31111°N 72.92861°W",
        "+41.31111 -72.92861",
        "41,31111; -72,92861",
        "\ufeff41.31111, -72.92861\u200e",
        "Point(-72.92861 41.31111)",
    ],
)
def test_one_place_in_many_spellings(text):
    assert position_of(text) == pytest.approx(NEW_HAVEN, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "lon", "lat"),
    [
        ("33.9 s, 151.2 e", 151.2, -33.9),
        ("33d 54m 36s s, 151d 12m e", 151.2, -33.91),
        ("0° 7′ 39″ W, 51° 30′ N", -0.1275, 51.5),
        ("-0° 7′ 39″, −0.5°", -0.5, -0.1275),
        ("5e-05, -180", -180.0, 5e-5),
        ("47° 59′ 60″ N, 7° E", 7.0, 48.0),
    ],
)
def test_signs_and_sides(text, lon, lat):
    assert position_of(text) == pytest.approx((lon, lat))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Happy Valley",
        "48.1",
        "48.1 N",
        "48.1 N, 11.5",  # one letter
        "48.1 N, 11.5 S",  # two latitudes
        "N 48.1 N, 11.5 E",
        "-48.1 N, 11.5 E",  # the direction twice
        "48.5° 30′ N, 11° E",  # a fraction before the last part
        "48° 61′ N, 11° E",
        "48° 30″ N, 11° E",  # seconds without minutes
        "91° N, 11° E",
        "151.2, -33.9",  # longitude first: not exchanged in silence
        "48.1, 181",
        "48 11 11 34",  # cut in three ways
        "48,1 11,5",  # decimal commas, or 48 and 1° 11.5'
        "48° 30",  # one value
        "1, 2, 3",
        "nan, nan",
        "51° 30′ N, 0° 8′ W / 52.5; -0.13",  # spellings a degree apart
        "Point(11.5 95)",
    ],
)
def test_texts_without_one_sensible_reading_are_no_position(text):
    assert position_of(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48.1 N", 48.1),
        ("11° 34′ E", 11 + 34 / 60),
        ("S 33.9", -33.9),
        ("33 30 s", -33.5),
        ("−72.9286", -72.9286),
        ("-0° 7′ 39″", -0.1275),
        ("48,5", 48.5),
        ("180° W", -180.0),
        ("95 N", None),
        ("180.1", None),
        ("-33 S", None),
        ("nan", None),
        ("", None),
    ],
)
def test_single_values(text, value):
    assert number_of(text) == pytest.approx(value)


def test_what_is_written_in_any_form_is_read_back():
    rng = np.random.default_rng(3)
    for lon, lat in zip(rng.uniform(-180, 180, 300), rng.uniform(-90, 90, 300), strict=True):
        for form in (_sexagesimal, _minutes, _degrees):
            joint = str(rng.choice([", ", " ", "; ", ""]))
            pair = [form(lat) + " NS"[1 + (lat < 0)], form(lon) + " EW"[1 + (lon < 0)]]
            text = joint.join(pair[:: int(rng.choice([1, -1]))])
            assert position_of(text) == pytest.approx((lon, lat), abs=1e-8), text
        plain = f"{lat:.9f}, {lon:.9f}"
        assert position_of(plain) == pytest.approx((lon, lat), abs=1e-8), plain


def _degrees(value: float) -> str:
    return f"{abs(value):.9f}°"


def _minutes(value: float) -> str:
    return f"{int(abs(value))}° {abs(value) % 1 * 60:.8f}′ "


def _sexagesimal(value: float) -> str:
    minutes = abs(value) % 1 * 60
    return f"{int(abs(value))}°{int(minutes)}′{minutes % 1 * 60:.7f}″"


def test_every_text_of_the_sample_is_read(real_data: Path):
    lines = (real_data / "geotag/wikimedia/geohack_texts.txt").read_text().splitlines()
    texts = [line.split("\t")[0] for line in lines if not line.startswith("#")]
    found = [position_of(text) for text in texts]
    assert len(texts) == 6 and None not in found
    assert found[1] == pytest.approx((114.182, 22.2728))
    assert found[2] == pytest.approx((-3 - 11 / 60, 55.95))
    assert found[3] == (0.0, 0.0)
    for at_new_haven in (found[0], found[4], found[5]):
        assert at_new_haven == pytest.approx(NEW_HAVEN, abs=2e-5)
