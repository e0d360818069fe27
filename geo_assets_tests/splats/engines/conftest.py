from __future__ import annotations

from pathlib import Path

import pytest

from geo_assets_tests.splats.engines.look_alikes import put_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photos, not to be changed; who must put something beside them copies it."""
    return put_dataset(tmp_path_factory.mktemp("engines") / "dataset")
