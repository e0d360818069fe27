import pytest

from geo_assets.demo.scene import Scene
from geo_assets.demo.world import World


@pytest.fixture(scope="session")
def world() -> World:
    from geo_assets.demo.world import demo_world

    return demo_world()


@pytest.fixture(scope="session")
def scene() -> Scene:
    from geo_assets.demo.scene import build_scene
    from geo_assets.demo.world import SEED

    return build_scene(SEED)
