"""Pairs by what the images look like: the most similar ones by a vocabulary tree; runs in a child process.

The tree is built from the box's own descriptors, so nothing is downloaded. On streets it finds about half of what
place and heading find: it is a supplement for images whose position is wrong, not a base.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from geo_assets.reconstruct.colmap import checkpoint

MAX_WORDS = 16_384
DESCRIPTORS_PER_WORD = 20
PER_IMAGE = 500
"""Descriptors of an image that take part in building and asking: the largest features, which others see too."""

MOST_DESCRIPTORS = 400_000
"""Descriptors that the words are made of."""


def propose_by_vocabulary(database: str, n_per_image: int, seed: int = 0, threads: int = 1) -> dict[str, Any]:
    """For each image the most similar others.

    The tree holds the same words on every run of one seed and one thread.

    Args:
        database: a COLMAP database with descriptors.
        n_per_image: similar images to propose for each.
        seed: for the choice of descriptors and the clustering.
        threads: 1 gives the same answer each time.

    Returns:
        ``pairs``: sorted names of two images each; ``n_words``.
    """
    descriptors = _sampled(database, seed)
    n_words = min(MAX_WORDS, len(descriptors) // DESCRIPTORS_PER_WORD)
    if n_words < 2:
        return {"pairs": [], "n_words": 0}
    with contextlib.closing(sqlite3.connect(database)) as con:
        names = dict(con.execute("select image_id, name from images"))
    pycolmap.set_random_seed(seed)
    index = pycolmap.VisualIndex.create(128, 64)
    build = pycolmap.VisualIndex.BuildOptions()
    build.num_visual_words, build.num_threads = n_words, threads
    build.num_iterations, build.num_rounds = 20, 1
    index.build(build, pycolmap.FeatureDescriptorsFloat(pycolmap.FeatureExtractorType.SIFT, descriptors))
    with tempfile.TemporaryDirectory(prefix="geo_assets_vocabulary_") as folder:
        tree = Path(folder) / "tree.bin"
        index.write(tree)
        options = pycolmap.VocabTreePairingOptions()
        options.vocab_tree_path, options.num_threads = tree, threads
        # An image is the most similar to itself.
        options.num_images, options.max_num_features = n_per_image + 1, PER_IMAGE
        with pycolmap.Database.open(database) as db:
            pairs = pycolmap.VocabTreePairGenerator(options, db).all_pairs()
    checkpoint(database)
    found = {(min(x, y), max(x, y)) for a, b in pairs if (x := names[a]) != (y := names[b])}
    return {"pairs": sorted(found), "n_words": n_words}


def _sampled(database: str, seed: int) -> np.ndarray:
    """Some descriptors of each image, as float32 [n, 128]."""
    chosen = np.random.default_rng(seed)
    taken = []
    with contextlib.closing(sqlite3.connect(database)) as con:
        (n_images,) = con.execute("select count(*) from descriptors where rows > 0").fetchone()
        share = min(PER_IMAGE, max(1, MOST_DESCRIPTORS // max(n_images, 1)))
        for rows, columns, data in con.execute(
            "select rows, cols, data from descriptors where rows > 0 order by image_id"
        ):
            values = np.frombuffer(data, np.uint8).reshape(rows, columns)
            taken.append(values[np.sort(chosen.permutation(rows)[:share])])
    return np.concatenate(taken).astype(np.float32) if taken else np.zeros((0, 128), np.float32)
