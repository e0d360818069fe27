"""How fast Placing shards become rows: python benchmarks/placing_2016.py [--records 6000] [--lines 300000].

Shards of made-up records with JPEGs of some 54 kB, in the form of the public ones. A shard is taken as users take it:
decoded, validated, its table written; the file is in the page cache. Time is that of the processor, all threads
together, and the best of some rounds, for other work on the machine can only add to it. A run has a cost of its own
(a connection, two files), so two sizes of shards are measured and the time of 30,000 records, a real shard, is
reckoned from them. Memory is what a fresh process takes at most beyond what it took before the shard; it grows with
the rows of the table to some 270 MB, where they spill, and never with the images.

The earlier way decoded and encoded each JPEG anew to write a position into it.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgpack
import numpy as np
from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart, peak
from geo_assets.geotag.mp16 import COORDINATES
from geo_assets.geotag.placing2016 import take_shard
from geo_assets.geotag.shard import records
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

TARGET_PER_S = 100_000.0
REAL = 30_000
"""Records of a real shard."""

EARLIER = 200
"""Photos of which the earlier way is measured."""


def jpegs(n: int = 16) -> list[bytes]:
    """Noisy photos of some 54 kB."""
    draw = np.random.default_rng(0)
    found = []
    for k in range(n):
        coarse = Image.fromarray(draw.integers(0, 255, (40 + 4 * k, 60 + 4 * k, 3), np.uint8))
        sink = io.BytesIO()
        coarse.resize((420, 315), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        found.append(sink.getvalue())
    return found


def write_shard(path: Path, n: int, images: list[bytes], first: int = 0) -> list[str]:
    """A shard of ``n`` records; their ids."""
    draw = np.random.default_rng(first)
    packer, ids = msgpack.Packer(), []
    with path.open("wb") as sink:
        for number in draw.integers(10**9, 10**10, n).tolist():
            ids.append(f"{number % 256:02x}/{number // 256 % 256:02x}/{number}.jpg")
            position = {"latitude": draw.uniform(-60, 70), "longitude": draw.uniform(-180, 180)}
            sink.write(packer.pack({"image": images[number % len(images)], "id": ids[-1]} | position) or b"")
    return ids


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    """Least processor time of some rounds [s]."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def taking(folder: Path, shard: str, rounds: int, extract: bool = False) -> dict[str, float]:
    """Take a shard into a fresh lake in each round; the first shard of a process pays for what it imports, so a small one is."""
    with tempfile.TemporaryDirectory() as scratch:
        lakes = iter(range(1_000_000))

        def take(name: str) -> None:
            lake = Lake(Path(scratch) / (f"lake{next(lakes)}" if extract else "lake"))
            if lake.has("placing_2016", shard="s"):
                Path(f"{lake.root}/tables/placing_2016/shard=s/data.parquet").unlink()
            took.append(take_shard(lake, folder, Path(name), "s", Geotag(extract=extract), lambda line: None))

        took: list[dict[str, float]] = []
        take("small.msg")
        before = peak()
        seconds = cpu_s(lambda: take(shard), rounds)
        assert took[-1]["n_rejects"] == 0
        return {"s": seconds, "mb": (peak() - before) / 1e6}


def earlier_s(path: Path, folder: Path) -> float:
    """Processor time of the earlier way for one record [s]."""

    def work() -> None:
        with path.open("rb") as stream:
            for k, record in enumerate(msgpack.Unpacker(stream, raw=False, max_buffer_size=0)):
                Image.open(io.BytesIO(record["image"])).save(folder / f"{k % 10}.jpg", "JPEG")
                if k + 1 == EARLIER:
                    break

    return cpu_s(work, 3) / EARLIER


def main(n: int = 6000, times: int = 4, lines: int = 300_000, rounds: int = 5) -> dict[str, float]:
    """Take shards of ``n`` and of ``times * n`` records.

    Returns:
        Figures: records a second of one core, ratios, memory.
    """
    images = jpegs()
    with tempfile.TemporaryDirectory(prefix="placing_") as scratch:
        folder, joined = Path(scratch) / "a" / "shards", Path(scratch) / "b"
        folder.mkdir(parents=True)
        joined.mkdir()
        write_shard(folder / "small.msg", 10, images)
        ids = write_shard(folder / "one.msg", n, images)
        with (folder / "many.msg").open("wb") as sink:
            for _ in range(times):
                with (folder / "one.msg").open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)  # a child's peak begins with that of its parent
        for name in ("one.msg", "many.msg"):  # into the page cache
            with (folder / name).open("rb") as source:
                while source.read(1 << 20):
                    pass
        size = (folder / "many.msg").stat().st_size
        one, many = (apart(taking, folder, name, rounds).result for name in ("one.msg", "many.msg"))
        decoding = cpu_s(lambda: sum(1 for _ in records(folder / "one.msg")), rounds) / n
        with (folder / "one.msg").open("rb") as stream:

            def unpack() -> None:
                stream.seek(0)
                sum(1 for _ in msgpack.Unpacker(stream, raw=False, max_buffer_size=0))

            by_msgpack = cpu_s(unpack, rounds) / n
        extracted = apart(taking, folder, "one.msg", 2, extract=True).result
        earlier = earlier_s(folder / "one.msg", Path(scratch))

        for name in ("small.msg", "one.msg"):
            os.link(folder / name, joined / name)
        with (joined / COORDINATES).open("w") as sink:
            sink.write("IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,S365_Label\n")
            others = (f"zz/{k}.jpg" for k in range(lines - n))
            for k, path in enumerate([*ids, *others]):
                sink.write(f"{path},{k % 99991}@N00,{k % 179 - 89.5},{k % 359 - 179.5},2,12,353\n")
        with_csv = apart(taking, joined, "one.msg", rounds).result

    each = (many["s"] - one["s"]) / ((times - 1) * n)
    real = one["s"] + (REAL - n) * each
    return {
        "kB an image": sum(map(len, images)) / len(images) / 1e3,
        f"records/s, {n:,} records": n / one["s"],
        f"records/s, {times * n:,} records": times * n / many["s"],
        f"records/s, {REAL:,} records": REAL / real,
        "to the target": REAL / real / TARGET_PER_S,
        "records/s, decoding alone": 1 / decoding,
        "records/s, msgpack alone": 1 / by_msgpack,
        "records/s, authors from CSV": n / with_csv["s"],
        "ms a record, the earlier way": earlier * 1e3,
        "to the earlier way": earlier * REAL / real,
        "extracted files/s": n / extracted["s"],
        "extracted to the earlier way": earlier * n / extracted["s"],
        f"peak MB, {n:,} records": one["mb"],
        f"peak MB, {times * n:,} records": many["mb"],
        f"MB of {times * n:,} records": size / 1e6,
    }


@click.command()
@click.option("--records", "n", default=6000, show_default=True)
@click.option("--times", default=4, show_default=True, help="the larger shard has so many times the records")
@click.option("--lines", default=300_000, show_default=True, help="lines of the CSV")
@click.option("--rounds", default=5, show_default=True)
def _command(n: int, times: int, lines: int, rounds: int) -> None:
    for name, value in main(n, times, lines, rounds).items():
        click.echo(f"{name:32} {value:12,.2f}")


if __name__ == "__main__":
    _command()
