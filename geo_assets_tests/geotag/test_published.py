import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.published import read_cells
from geo_assets.geotag.quarters import s2_codes

HEADER = "class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean\n"
PREAMBLE = "num_images: 4723695\nmin_concept_probability: ---\n"


def write(folder, *tokens: str, preamble: str = PREAMBLE):
    path = folder / "cells.csv"
    path.write_text(preamble + HEADER + "".join(f"{i},{token},9,1.5,2.5\n" for i, token in enumerate(tokens)))
    return path


@pytest.mark.parametrize("preamble", [PREAMBLE, ""])
def test_cells_hold_their_places(tmp_path, preamble):
    cells = read_cells(write(tmp_path, "47e67", "47e63", "365", preamble=preamble))
    assert len(cells) == 3
    # Paris is in 47e67, and its token is the highest of the three.
    assert cells.of(s2_codes([2.35, 103.0, -70.0], [48.86, 36.1, -30.0])).tolist() == [2, 0, -1]


@pytest.mark.parametrize(
    "token", ["4.7E+064", "8.90E+24", "100000", "", "xyz", "47e6", "d5", "00000000000000001", "47E67"]
)
def test_what_is_no_token_is_refused_with_its_line(tmp_path, token):
    with pytest.raises(SourceError, match=r"line 5: hex_id .* read hex_id as text"):
        read_cells(write(tmp_path, "47e67", token))


def test_overlapping_cells_are_refused(tmp_path):
    with pytest.raises(SourceError, match="overlap"):
        read_cells(write(tmp_path, "47e67", "47e66e3"))


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="no column hex_id"):
        read_cells(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_cells(tmp_path / "none.csv")


def test_real_cells(real_data):
    folder = real_data / "geotag" / "cells"
    assert [len(read_cells(folder / f"cells_50_{most}.csv")) for most in (1000, 2000, 5000)] == [12893, 7202, 3298]
    lines = (folder / "cells_50_1000.csv").read_text().splitlines()[3:]
    fields = [line.split(",") for line in lines]
    lat, lon = (np.array([float(row[k]) for row in fields]) for k in (3, 4))
    cells = read_cells(folder / "cells_50_1000.csv")
    assert (cells.of(s2_codes(lon, lat)) >= 0).mean() > 0.99, "the mean of a cell's photos lies in a cell"
    with pytest.raises(SourceError, match=r"line 2: hex_id '4.7E\+064' is no S2 token, as when a spreadsheet"):
        read_cells(folder / "excel_mangled_s2_tokens.csv")
