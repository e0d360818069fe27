import errno
import sqlite3

import dagster as dg
import pytest

from geo_assets.errors import ApiError, ConfigError, GeoAssetsError
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


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("database or disk is full")]
)
def test_a_full_disk_is_said_in_one_sentence(error: Exception) -> None:
    with pytest.raises(dg.Failure) as caught, failures():
        raise error
    assert str(caught.value.description).startswith("The disk is full")
    assert caught.value.allow_retries is False


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), sqlite3.OperationalError("no such table")])
def test_other_errors_of_files_pass(error: Exception) -> None:
    with pytest.raises(type(error)), failures():
        raise error


def test_pictures_and_figures_as_the_ui_takes_them() -> None:
    import numpy as np

    assert "data:image/png;base64," in str(picture(b"\x89PNG..").value)
    assert "data:image/jpeg;base64," in str(picture(b"\xff\xd8..").value)
    assert plain({"a": np.int64(3), "b": None, "c": {"x": 1}}) == {"a": 3, "c": {"x": 1}}
