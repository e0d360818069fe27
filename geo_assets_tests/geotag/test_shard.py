import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from geo_assets.geotag.shard import records
from geo_assets_tests.geotag.places import jpeg, record, write_shard


def refused(shard: Path) -> list[tuple[str | None, str | None]]:
    return [(fault, value) for fault, value, *_ in records(shard) if fault]


def paths(shard: Path) -> list[str | None]:
    return [path for fault, _, path, *_ in records(shard) if fault is None]


def by_msgpack(shard: Path) -> Iterator[tuple[Any, ...] | None]:
    """Path, position and JPEG of each record as msgpack reads it; None for what is no photo with a text as its id."""
    with shard.open("rb") as stream:
        for content in msgpack.Unpacker(
            stream, raw=False, unicode_errors="surrogateescape", strict_map_key=False, max_buffer_size=0
        ):
            path = content.get("id") if isinstance(content, dict) else None
            angles = [content.get(key) for key in ("longitude", "latitude")] if isinstance(content, dict) else []
            kinds = {type(angle) if angle is None or isinstance(angle, bool) else float for angle in angles}
            are_angles = all(angle is None or isinstance(angle, int | float) for angle in angles)
            is_text = isinstance(path, str) and path.isprintable()
            if not is_text or len(kinds) != 1 or bool in kinds or not are_angles:
                yield None
                continue
            image = content.get("image")
            image = image.encode(errors="surrogateescape") if isinstance(image, str) else image
            is_jpeg = isinstance(image, bytes) and image.startswith(b"\xff\xd8\xff")
            yield path, *(repr(None if a is None else float(a)) for a in angles), image if is_jpeg else None


def drawn(draw: random.Random) -> Any:
    """A record as writers pack it, or a strange one."""
    image = b"\xff\xd8\xff" + draw.randbytes(draw.choice([0, 5, 200, 700, 5000, 66_000]))
    angle = draw.choice([12.5, -0.0, 5, math.inf, 2**63, True, None, "x", [1]])
    content = {
        "image": draw.choice([image] * 6 + [b"", b"PNG", None, "text", {"a": image}]),
        "id": draw.choice(["ab/cd/1.jpg", "i" * 40, "ü" * 200, "", 7, None, b"bytes"])
        if draw.random() < 0.3
        else "a/1",
        "latitude": draw.uniform(-90, 90) if draw.random() < 0.9 else angle,
        "longitude": draw.uniform(-180, 180) if draw.random() < 0.9 else angle,
        draw.choice(["title", 3, b"id", "x" * 40]): draw.choice(["text", 1, None, [1, {}], image, {"z": 1}, -1.5]),
    }
    if draw.random() < 0.03:
        return [1, "list", content["latitude"]]
    keys = draw.sample(list(content), draw.choice([5, 5, 5, 5, 5, 4, 3, 1]))
    if draw.random() < 0.3:
        keys = [key for key in keys if key not in ("latitude", "longitude")]
    return {key: content[key] for key in keys} | dict.fromkeys(range(draw.choice([0, 0, 0, 14])))


@pytest.mark.parametrize("is_old", [False, True], ids=["bytes as bytes", "bytes as text"])
def test_records_are_what_msgpack_reads(tmp_path, is_old):
    draw = random.Random(3)
    packer = msgpack.Packer(use_bin_type=not is_old, use_single_float=is_old)
    shard = tmp_path / "s.msg"
    shard.write_bytes(b"".join(packer.pack(drawn(draw)) or b"" for _ in range(600)))
    packed = shard.read_bytes()
    wanted, found = list(by_msgpack(shard)), list(records(shard))
    assert len(found) == len(wanted) == 600 and 100 < wanted.count(None) < 300
    for (fault, _, path, lon, lat, offset, size), want in zip(found, wanted, strict=True):
        image = None if offset is None or size is None else packed[offset : offset + size]
        assert (None if fault else (path, repr(lon), repr(lat), image)) == want


def test_a_cut_shard_keeps_its_whole_records_and_says_where_it_breaks(tmp_path):
    shard = tmp_path / "s.msg"
    write_shard(shard, [record("a/b/1.jpg", 1, 1), record("a/b/2.jpg", 2, 2)])
    whole = shard.read_bytes()
    half = len(whole) // 2
    for size in (half + 1, half + 40, len(whole) - 600, len(whole) - 1):
        shard.write_bytes(whole[:size])
        assert paths(shard) == ["a/b/1.jpg"]
        where = f"after 1 records, at byte {half:,} of {size:,}: the file ends inside a record"
        assert refused(shard) == [("the shard breaks off", where)]


@pytest.mark.parametrize("rubbish", [b"\xc1", b"\x07" * 5000, b"\xdb\x00\x10\x00\x00", b"\xdd\xff\xff\xff\xff\x01"])
def test_rubbish_between_two_records_costs_no_other(tmp_path, rubbish):
    shard = tmp_path / "s.msg"
    write_shard(shard, [record("a/b/1.jpg", 1, 1)])
    first = shard.read_bytes()
    shard.write_bytes(first + rubbish + first)
    assert paths(shard) == ["a/b/1.jpg"] * 2
    ((fault, value),) = refused(shard)
    assert fault == "the shard is damaged"
    assert value and value.startswith(f"after 1 records, at byte {len(first):,} of {2 * len(first) + len(rubbish):,}: ")
    assert value.endswith(f"; {len(rubbish):,} bytes are passed over")


def test_a_false_length_does_not_take_in_the_records_behind(tmp_path):
    shard = tmp_path / "s.msg"
    image = b"\xff\xd8\xff" + bytes(1000)
    good = [{"image": image, "id": f"a/b/{k}.jpg", "latitude": 1.0, "longitude": 2.0} for k in range(9)]
    write_shard(shard, good)
    packed = bytearray(shard.read_bytes())
    at = len(packed) // 9 * 2 + len(b"\x84\xa5image\xc5")
    packed[at : at + 2] = (5000).to_bytes(2, "big")
    shard.write_bytes(packed)
    assert paths(shard) == [f"a/b/{k}.jpg" for k in range(9) if k != 2]
    assert [fault for fault, _ in refused(shard)] == ["the shard is damaged"]


def test_a_length_beyond_reason_is_not_waited_for(tmp_path):
    shard = tmp_path / "s.msg"
    write_shard(shard, [record("a/b/1.jpg", 1, 1)])
    shard.write_bytes(shard.read_bytes() + b"\x81\xa5image\xc6\xff\xff\xff\xff")
    assert paths(shard) == ["a/b/1.jpg"]
    assert [fault for fault, _ in refused(shard)] == ["the shard breaks off"]


def test_an_id_that_is_no_text_is_refused_in_words_that_are(tmp_path):
    shard = tmp_path / "s.msg"
    packer = msgpack.Packer(use_bin_type=False)
    shard.write_bytes(packer.pack({"id": b"a/\xff\xfe.jpg", "image": jpeg(), "latitude": 1.0, "longitude": 2.0}) or b"")
    assert refused(shard) == [("the id is not UTF-8 text", "a/\\udcff\\udcfe.jpg")]


def test_an_empty_shard_has_no_records(tmp_path):
    (tmp_path / "s.msg").touch()
    assert list(records(tmp_path / "s.msg")) == []
