import numpy as np
import pytest

from geo_assets.demo import raycast, textures
from geo_assets.demo.scene import Camera, Scene, build_scene, cam_from_world, world_from_street
from geo_assets.demo.world import SEED


def looking(heading_deg: float, *, pitch_deg: float = 0.0, at: tuple[float, float, float] = (0, 0, 2)) -> Camera:
    """A camera in the street frame's terms: 0 degrees looks along street A."""
    turn = world_from_street()
    street = np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))
    rotation = cam_from_world(np.radians(heading_deg + street), np.radians(pitch_deg), 0.0)
    return Camera("perspective", 96, 72, 80.0, turn @ np.array(at, float), rotation)


def test_the_same_seed_builds_the_same_scene(scene: Scene) -> None:
    again = build_scene.__wrapped__(SEED)
    for name in ("boxes", "faces", "texels", "layout"):
        assert (getattr(again, name) == getattr(scene, name)).all()


def test_streets_are_free(scene: Scene) -> None:
    """No house stands on a carriageway, and nothing at all in a lane that is driven."""
    x0, x1, y0, y1 = scene.boxes[:, :4].T
    inside = (np.minimum(np.abs(x0), np.abs(x1)) < 59) & (np.minimum(np.abs(y0), np.abs(y1)) < 59)
    across_a = np.where(y0 * y1 < 0, 0, np.minimum(np.abs(y0), np.abs(y1)))
    across_b = np.where(x0 * x1 < 0, 0, np.minimum(np.abs(x0), np.abs(x1)))
    assert (np.maximum(np.minimum(across_a, across_b), 0)[inside] > 2.8).all()


def test_depth_of_the_ground_is_exact(scene: Scene) -> None:
    camera = looking(0, pitch_deg=-30)
    _, depth = scene.render(camera, samples=1)
    rows, columns = np.mgrid[40:72:8, 10:90:16]
    pixels = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
    points = camera.unproject(pixels, depth[rows.ravel(), columns.ravel()])
    np.testing.assert_allclose(points[:, 2], 0, atol=1e-3)


def test_the_sky_has_no_depth_and_is_blue(scene: Scene) -> None:
    image, depth = scene.render(looking(0, pitch_deg=80), samples=1)
    assert (depth == 0).all()
    assert (image[..., 2] > image[..., 0]).all()


@pytest.mark.parametrize("heading", [0, 90, 180, 270])
def test_each_arm_is_closed_by_a_house(scene: Scene, heading: int) -> None:
    _, depth = scene.render(looking(heading), samples=1)
    assert 59 < depth[36, 48] < 62


def test_samples_converge(scene: Scene) -> None:
    one, two, four = (scene.render(looking(20), samples=n)[0] for n in (1, 2, 4))
    assert np.abs(two - four).mean() < 0.7 * np.abs(one - four).mean()
    assert two.mean() == pytest.approx(four.mean(), abs=0.005)


def test_boxes_culled_by_tile_do_not_change_the_picture(scene: Scene) -> None:
    """A small window of a wide picture equals the picture: the tiles' lists of boxes lose none."""
    wide = looking(33, at=(4, -1.5, 2))
    whole, _ = scene.render(wide, samples=1)
    m = np.ascontiguousarray((wide.cam_from_world @ world_from_street()).T, np.float32)
    origin = (wide.centre @ world_from_street()).astype(np.float32)
    every = np.arange(len(scene.boxes))
    for row, column in [(10, 5), (36, 48), (60, 90), (15, 16), (31, 32)]:
        x, y = (column + 0.5 - 48) / 80, (row + 0.5 - 36) / 80
        dx, dy, dz = (m @ np.array([x, y, 1], np.float32)).tolist()
        r, g, b, _ = raycast._colour(
            origin, np.float32(dx), np.float32(dy), np.float32(dz), np.float32(1 / 80), scene.boxes, scene.faces,
            every, len(every), scene.texels, scene.layout, np.float32(textures.TEXEL_M),
            np.array([62.0, 9.0], np.float32), raycast.shades(),
        )  # fmt: skip
        np.testing.assert_allclose(whole[row, column], np.clip(np.array([r, g, b]) / 255, 0, 1), atol=0.01)


def test_panorama_looks_ahead_in_its_middle(scene: Scene) -> None:
    turn = world_from_street()
    ahead = cam_from_world(np.radians(40.0), 0.0, 0.0)
    centre = turn @ np.array([0, 0, 2.0])
    panorama, _ = scene.render(Camera("spherical", 360, 180, 0.0, centre, ahead), samples=2)
    photo, _ = scene.render(Camera("perspective", 60, 60, 30 / np.tan(np.radians(30)), centre, ahead), samples=2)
    # Near the axis one pixel is one degree in both, up to the tangent.
    a, b = panorama[85:95, 170:190].mean((0, 1)), photo[25:35, 20:40].mean((0, 1))
    np.testing.assert_allclose(a, b, atol=0.05)


def test_pyramid_halves_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(0)
    levels = raycast.pyramid(rng.integers(0, 255, (64, 96, 3)).astype(np.uint8))
    assert [level.shape[:2] for level in levels] == [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    for level in levels:
        assert level.mean() == pytest.approx(levels[0].mean(), abs=1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (33, 17)])
def test_pyramid_of_odd_and_tiny_textures(shape: tuple[int, int]) -> None:
    levels = raycast.pyramid(np.full((*shape, 3), 77, np.uint8))
    assert len(levels) == raycast.N_LEVELS
    assert all((level == 77).all() for level in levels)


def test_facades_differ_and_have_contrast() -> None:
    rng = np.random.default_rng(1)
    fronts = [textures.facade(rng, 8.0, 10.0) for _ in range(3)]
    assert all(front.shape == (400, 320, 3) and front.std() > 20 for front in fronts)
    grey = [front.mean(-1).ravel() for front in fronts]
    assert abs(np.corrcoef(grey)[np.triu_indices(3, 1)]).max() < 0.6
