import dagster as dg
import pytest

from geo_assets.errors import ApiError, ConfigError, GeoAssetsError
from geo_assets.progress import Progress
from geo_assets.reporting import failures, picture, plain


def _late(error: ApiError) -> ApiError:
    error.may_pass = True
    return error


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (ConfigError("Box r03c07 of x has 2 images.", n_images=2), False),
        (ApiError("no such token", status=500, code=190), False),
        (_late(ApiError("limit reached", status=429, code=4)), True),
    ],
)
def test_an_error_becomes_a_failure_with_its_sentence_and_figures(error: GeoAssetsError, retry: bool) -> None:
    with pytest.raises(dg.Failure) as caught, failures():
        raise error
    assert caught.value.description == str(error)
    assert caught.value.allow_retries is retry


def test_what_is_no_error_of_ours_passes() -> None:
    with pytest.raises(ZeroDivisionError), failures():
        _ = 1 / 0


def test_progress_says_count_rate_and_time_left_but_not_at_every_step() -> None:
    lines: list[str] = []
    progress = Progress(lines.append, "images", 1000, every_s=0)
    progress(250)
    assert "250 of 1,000 images" in lines[0]
    assert "s left" in lines[0]
    quiet = Progress(lines.append, "images", 1000, every_s=60)
    quiet(500)
    assert len(lines) == 1


def test_pictures_and_figures_as_the_ui_takes_them() -> None:
    import numpy as np

    assert "data:image/png;base64," in str(picture(b"\x89PNG..").value)
    assert "data:image/jpeg;base64," in str(picture(b"\xff\xd8..").value)
    assert plain({"a": np.int64(3), "b": None, "c": {"x": 1}}) == {"a": 3, "c": {"x": 1}}
