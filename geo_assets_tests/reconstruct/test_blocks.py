from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from geo_assets.reconstruct.blocks import Block, block_key, cut, halves
from geo_assets.reconstruct.graph import components

Edge = tuple[str, str, int]


def chain(n: int, reach: int = 3) -> tuple[list[str], np.ndarray, list[Edge]]:
    """Images every three metres along a street, with pairs to the next ``reach``."""
    ids = [f"i{k:06d}" for k in range(n)]
    xy = np.stack([np.arange(n) * 3.0, np.zeros(n)], axis=1)
    edges = [(ids[a], ids[a + d], 200 - 50 * d) for a in range(n) for d in range(1, reach + 1) if a + d < n]
    return ids, xy, edges


def town(streets: int, per_street: int, seed: int = 0) -> tuple[list[str], np.ndarray, list[Edge]]:
    """A grid of streets that meet: dense along a street, few pairs at each crossing."""
    from scipy.spatial import KDTree

    rng = np.random.default_rng(seed)
    along = np.linspace(0, 4.0 * per_street, per_street)
    lines = np.linspace(0, 4.0 * per_street, streets)
    xy = np.concatenate(
        [np.stack([along, np.full(per_street, y)], axis=1) for y in lines]
        + [np.stack([np.full(per_street, x), along], axis=1) for x in lines]
    )
    xy = xy + rng.normal(0, 0.3, xy.shape)
    ids = [f"i{k:06d}" for k in rng.permutation(len(xy))]
    pairs = KDTree(xy).query_pairs(13.0, output_type="ndarray")
    return ids, xy, [(ids[a], ids[b], 50) for a, b in pairs.tolist()]


def frames_of(ids: list[str]) -> list[Any]:
    return list(ids)


def tied(block: Block, edges: list[Edge]) -> int:
    """Number of connected pieces of a block."""
    inside = set(block.image_ids)
    kept = [(a, b) for a, b, _ in edges if a in inside and b in inside]
    return int(components(block.image_ids, [a for a, _ in kept], [b for _, b in kept]).max()) + 1


def check(blocks: list[Block], ids: list[str], edges: list[Edge], max_images: int) -> None:
    assert sorted(i for block in blocks for i in block.own) == sorted(ids)
    for block in blocks:
        assert len(block.image_ids) == len(set(block.image_ids)) <= max_images
        assert tied(block, edges) == 1


def test_a_small_component_is_one_block():
    ids, xy, edges = chain(50)
    assert cut(ids, xy, edges, frames_of(ids), 50, 10) == [Block(ids, [])]


@pytest.mark.parametrize("n, max_images, shared", [(1000, 100, 20), (333, 20, 5), (700, 500, 50)])
def test_a_street_is_cut_into_pieces_that_share_their_ends(n: int, max_images: int, shared: int):
    ids, xy, edges = chain(n)
    blocks = cut(ids, xy, edges, frames_of(ids), max_images, shared)
    check(blocks, ids, edges, max_images)
    assert len(blocks) <= 2.2 * n / max_images + 1
    shared = min(shared, int(0.2 * max_images))
    for first, second in itertools.pairwise(blocks):
        assert len(set(first.image_ids) & set(second.image_ids)) >= min(shared, len(second.own))


def test_a_town_is_cut_where_few_pairs_cross():
    ids, xy, edges = town(6, 150)
    blocks = cut(ids, xy, edges, frames_of(ids), 400, 40)
    check(blocks, ids, edges, 400)
    owner = {i: k for k, block in enumerate(blocks) for i in block.own}
    across = sum(owner[a] != owner[b] for a, b, _ in edges)
    # Seven pairs tie each image of a street; cuts through crossings would part far more of them.
    assert across <= 0.05 * len(edges)
    # Blocks that pairs tie together share images, as many as were asked for.
    ties: dict[tuple[int, int], int] = {}
    for a, b, _ in edges:
        if owner[a] != owner[b]:
            key = (min(owner[a], owner[b]), max(owner[a], owner[b]))
            ties[key] = ties.get(key, 0) + 1
    for a, b in ties:
        assert len(set(blocks[a].image_ids) & set(blocks[b].image_ids)) >= 40


def test_the_order_of_images_and_pairs_does_not_matter():
    ids, xy, edges = town(4, 60)
    other = np.random.default_rng(1).permutation(len(ids))
    shuffled = [edges[k] for k in np.random.default_rng(2).permutation(len(edges))]
    turned = [(b, a, n) for a, b, n in shuffled]
    first = cut(ids, xy, edges, frames_of(ids), 120, 20)
    second = cut([ids[k] for k in other], xy[other], turned, [ids[k] for k in other], 120, 20)
    assert first == second


def test_views_of_a_frame_stay_together():
    photos, xy, edges = chain(200)
    ids = [f"{photo}_v{view}" for photo in photos for view in range(4)]
    places = np.repeat(xy, 4, axis=0)
    views = [(f"{a}_v{v}", f"{b}_v{v}", n) for a, b, n in edges for v in range(4)]
    frames = [photo for photo in photos for _ in range(4)]
    blocks = cut(ids, places, views, frames, 100, 20)
    assert all(len(block.image_ids) <= 100 for block in blocks)
    for block in blocks:
        for part in (block.own, block.shared):
            counts: dict[str, int] = {}
            for image in part:
                counts[image[:-3]] = counts.get(image[:-3], 0) + 1
            assert set(counts.values()) <= {4}


def test_a_star_and_images_in_one_place_end_too():
    ids = [f"i{k:04d}" for k in range(300)]
    star = [(ids[0], other, 30) for other in ids[1:]]
    blocks = cut(ids, np.zeros((300, 2)), star, frames_of(ids), 100, 10)
    assert sorted(i for block in blocks for i in block.own) == ids
    clique = [(a, b, 30) for k, a in enumerate(ids[:60]) for b in ids[k + 1 : 60]]
    places = np.full((60, 2), np.nan)
    check(cut(ids[:60], places, clique, frames_of(ids[:60]), 20, 4), ids[:60], clique, 20)


def test_halves_are_two_and_smaller():
    ids, xy, edges = chain(80)
    both = halves(ids, xy, edges, frames_of(ids), 10)
    assert len(both) == 2
    assert len(set(both[0].image_ids) & set(both[1].image_ids)) >= 10
    assert all(len(block.image_ids) <= 60 and tied(block, edges) == 1 for block in both)
    assert len(halves(ids[:1], xy[:1], [], ids[:1], 10)) == 1


def test_cost_is_nearly_linear():
    ids, xy, edges = town(40, 1250)  # 100,000 images
    began = time.process_time()
    blocks = cut(ids, xy, edges, frames_of(ids), 500, 50)
    assert time.process_time() - began < 15
    assert all(len(block.image_ids) <= 500 for block in blocks)
    assert len(blocks) <= 2.0 * len(ids) / 500


def test_a_key_is_that_of_its_content():
    images = [{"image_id": "a", "feature_key": "1"}, {"image_id": "b", "feature_key": "2"}]
    pairs, options = [["a", "b", 40]], {"seed": 0}
    key = block_key(images, pairs, options)
    assert key == block_key(images[::-1], pairs, options)
    assert key != block_key([images[0], images[1] | {"feature_key": "3"}], pairs, options)
    assert key != block_key(images, [["a", "b", 41]], options)
    assert key != block_key(images, pairs, {"seed": 1})
