"""The schema of every table, in one place: columns, types, units and what they mean.

A table that is partitioned lies in one parquet file for each city and box; ``city`` and ``box`` stand in the
path, not in the file. Ids are strings; times are UTC; pairs are longitude before latitude, in degrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from geo_assets.errors import GeoAssetsError

if TYPE_CHECKING:
    import pandas as pd  # loaded where frames are made: who only asks for columns need not pay for it

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "time": pa.timestamp("ms", tz="UTC"),
    "strings": pa.list_(pa.string()),
    "floats": pa.list_(pa.float64()),
    "binary": pa.binary(),
}


@dataclass(frozen=True)
class Column:
    """One column: its name, its type (a key of :data:`TYPES`) and its meaning with the unit."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table; ``sort`` is the order of its rows, so that equal content gives equal bytes.

    ``key`` names a row of a partition: no two rows share it. Without columns there is one row at most; None where rows
    may say the same twice.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    sort: tuple[str, ...] = ()
    partition: tuple[str, ...] = ()
    key: tuple[str, ...] | None = None

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, column meanings kept as field metadata."""
        return pa.schema([pa.field(c.name, TYPES[c.type], metadata={"meaning": c.meaning}) for c in self.columns])

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return [c.name for c in self.columns]

    def empty(self) -> pd.DataFrame:
        """A frame without rows that has every column."""
        return to_pandas(self.schema.empty_table())

    def frame(self, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Records as rows with every column; what a record lacks is missing."""
        import pandas as pd

        return pd.DataFrame(records, columns=self.column_names) if records else self.empty()

    def conform(self, frame: pd.DataFrame) -> pa.Table:
        """The frame as an Arrow table of exactly this schema, sorted.

        Raises:
            GeoAssetsError: a column is missing, unknown, or holds values of another type.
        """
        wanted, got = self.column_names, list(frame.columns)
        missing, unknown = [c for c in wanted if c not in got], [c for c in got if c not in wanted]
        if missing or unknown:
            raise GeoAssetsError(
                f"Table {self.name} does not match its schema: missing {missing}, unknown {unknown}. Nothing was written."
            )
        if self.sort and len(frame):
            frame = frame.sort_values(list(self.sort), kind="stable")
        arrays = []
        for column in self.columns:
            try:
                arrays.append(_array(cast("pd.Series", frame[column.name]), column.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise GeoAssetsError(
                    f"Table {self.name}, column {column.name}: {error}. Nothing was written."
                ) from None
        return pa.Table.from_arrays(arrays, schema=self.schema)


def _array(values: pd.Series, kind: str) -> pa.Array:
    import pandas as pd

    if kind != "time":
        return pa.array(values, type=TYPES[kind], from_pandas=True)
    # Sources differ in resolution; milliseconds are what the API and EXIF can say, so the rest is cut off.
    return pa.array(pd.to_datetime(values, utc=True).dt.floor("ms"), from_pandas=True).cast(TYPES[kind], safe=False)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas with missing integers and booleans kept as missing, not turned into floats or objects."""
    import pandas as pd

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    wanted = {f.type for f in table.schema if f.type in nullable and table.column(f.name).null_count}
    return table.to_pandas(types_mapper=lambda t: nullable[t] if t in wanted else None)


def _table(
    name: str, meaning: str, columns: str, *, sort: str = "", partition: str = "city box", key: str | None = None
) -> Table:
    """A table from lines of ``name type meaning``; rows are named by what they are sorted by, unless ``key`` says else."""
    parsed = tuple(Column(*line.split(maxsplit=2)) for line in columns.splitlines() if line.strip())
    named = None if key == REPEATS else tuple((sort if key is None else key).split())
    return Table(name, meaning, parsed, tuple(sort.split()), tuple(partition.split()), named)


REPEATS = "*"
"""The key of a table whose rows may say the same twice."""

PHOTO_COLUMNS = """
photo_id      string   id of the photo within its source
source        string   placing_2016, google_landmark, flickr_geotag or mapillary
path          string   safe relative path of the photo within its source
lon           float    longitude [deg]
lat           float    latitude [deg]
captured_at   time     capture time, UTC; null where the source does not say
author_hash   string   first 16 hex digits of the SHA-256 of the author's name; null where unknown
licence       string   licence of the photo; null where the source does not say
landmark_id   string   Google landmark id; null elsewhere
flags         strings  what a user may want to drop: null_island, shared_position (of several photos), unclean (not in train_clean.csv)
"""

_OF_PHOTOS = """\
lon             float    longitude of the spherical mean [deg]
lat             float    latitude of the spherical mean [deg]
medoid_lon      float    longitude of the point nearest to the mean [deg]
medoid_lat      float    latitude of the point nearest to the mean [deg]
n_photos        int      photos in the cell
n_points        int      unique coordinates in the cell
mean_km         float    mean distance of the photos to the mean [km]
std_km          float    standard deviation of that distance [km]
p50_km          float    median of that distance [km]
p90_km          float    90th percentile of that distance [km]
p95_km          float    95th percentile of that distance [km]
max_km          float    greatest of these distances [km]
resultant       float    length of the mean unit vector; near 0 the centroid means nothing"""
"""Columns of a cell that is cut in four: what is said of its photos."""

_ALL = [
    # harvest
    _table(
        "bbox_partitions",
        "One row: the box, its neighbours, and what the coverage tiles count in it.",
        """
west            float    western edge [deg]
south           float    southern edge [deg]
east            float    eastern edge [deg]
north           float    northern edge [deg]
neighbours      strings  boxes of the city that touch this one
tiles           strings  z14 tiles that cover the box, as z/x/y
n_images        int      images in the box by the tiles
n_sequences     int      sequences in the box by the tiles
coverage_hash   string   SHA-256 of the sorted image ids that the tiles name in the box
changed_at      time     when the set of these ids was first seen as it is, UTC
fetched_at      time     when the tiles were asked, UTC
""",
    ),
    _table(
        "sequence_ids",
        "One row a sequence that has an image in the box.",
        """
sequence_id     string   id of the sequence
n_images        int      images of the whole sequence
n_in_tiles      int      images of the sequence in the box by the tiles
n_in_box        int      images of the sequence known or suspected in the box by any source
first_seen_in   string   source that named the sequence first: tile, audit or photos
closed          bool     whether the API listed the sequence's images
""",
        sort="sequence_id",
    ),
    _table(
        "sequence_images",
        "One row an image that may lie in the box: an id and which sources named it.",
        """
image_id        string   id of the image
sequence_id     string   sequence of the image
in_tiles        bool     named by the tiles of original positions
in_computed     bool     named by the tiles of computed positions
in_closure      bool     named by the list of a sequence that the tiles name
in_audit        bool     named by a bounding-box search
in_late_closure bool     named by the list of a sequence that only the audit or metadata named
home_box        string   box in which tiles or searches place the image, - outside the city; null where none does
""",
        sort="image_id",
    ),
    _table(
        "certificates",
        "One row: what each source said about the box, and whether the sources agree.",
        """
n_tiles         int      tiles asked
n_failed_tiles  int      tiles that could not be had
n_tile_images   int      images named by the tiles
n_closure_added int      images that only the lists of the tiles' sequences named
n_audit_cells   int      cells asked by the audit
n_audit_asks    int      answers to these cells
n_audit_again   int      images named by the audit that tiles or sequence lists named as well
n_audit_new     int      images named by the audit and by neither tiles nor lists of the tiles' sequences
n_audit_added   int      these, and what the lists of sequences that only the audit or metadata named brought
n_unresolved    int      ids that got no metadata and no tombstone
n_unverifiable  int      audit cells that the API would not answer however small
n_unclosed      int      sequences with an image in the box whose images the API would not list
n_tombstones    int      ids that the API says do not exist any more
n_images        int      images in the box in the end
n_estimated_missing float images that all sources may have missed, by capture and recapture; null where unknown
complete        bool     whether nothing is unresolved, unverifiable, unclosed or without a tile
dataset_hash    string   SHA-256 of the sorted image ids
fetched_at      time     when the box was harvested, UTC
""",
        partition="city box",
    ),
    _table(
        "city_certificates",
        "One row: what the certificates of all boxes of the city say together.",
        """
n_boxes         int      boxes of the city's grid
n_complete      int      boxes whose certificate is complete
n_images        int      images in the city
n_sequences     int      sequences with an image in the city
n_tile_images   int      images named by the tiles
n_closure_added int      images that only the lists of the tiles' sequences named
n_audit_again   int      images named by the audit that tiles or sequence lists named as well
n_audit_new     int      images named by the audit and by neither tiles nor lists of the tiles' sequences
n_audit_added   int      these, and what the lists of sequences that only the audit or metadata named brought
n_failed_tiles  int      tiles that could not be had
n_unresolved    int      ids that got no metadata and no tombstone
n_unverifiable  int      audit cells that the API would not answer however small
n_unclosed      int      sequences whose images the API would not list
n_tombstones    int      ids that the API says do not exist any more
n_estimated_missing float images that all sources may have missed, by capture and recapture; null where unknown
complete        bool     whether every box is complete
dataset_hash    string   SHA-256 of the sorted dataset hashes of the boxes
fetched_at      time     when the certificate was written, UTC
""",
        partition="city",
    ),
    _table(
        "image_metadata",
        "One row an image of the box: where, when, with what camera, by whom.",
        """
image_id            string  id of the image
sequence_id         string  sequence of the image
lon                 float   longitude as recorded by the device [deg]
lat                 float   latitude as recorded by the device [deg]
altitude_m          float   altitude as recorded by the device [m]
computed_lon        float   longitude corrected by structure from motion [deg]; null where there is none
computed_lat        float   latitude corrected by structure from motion [deg]; null where there is none
computed_altitude_m float   altitude corrected by structure from motion [m]
compass_deg         float   heading as recorded, clockwise from north [deg]
computed_compass_deg float  heading corrected by structure from motion, clockwise from north [deg]
computed_rotation   floats  axis-angle rotation of the camera [rad]; null where there is none
captured_at         time    capture time, UTC; null where the device's clock is implausible
captured_at_ms      int     capture time as the device said it [ms since 1970]
camera_type         string  perspective, fisheye or spherical
camera_parameters   floats  focal length and k1, k2, normalised by the longer side
width               int     width of the original [px]
height              int     height of the original [px]
exif_orientation    int     EXIF orientation, 1 to 8
make                string  maker of the camera
model               string  model of the camera
is_pano             bool    whether the image is a panorama
quality_score       float   quality from 0 to 1
creator_id          string  id of the author
creator_username    string  name of the author
organization_id     string  organisation that owns the sequence
sfm_cluster_id      string  id of the provider's own reconstruction
atomic_scale        float   scale of the provider's own reconstruction
tile_x              int     column of the z14 tile of the position
tile_y              int     row of the z14 tile of the position, from the north
in_aoi_original     bool    whether the recorded position lies in the city's area
in_aoi_computed     bool    whether the corrected position lies in the city's area; null where there is none
source_mask         int     who named the image: 1 tile, 2 computed tile, 4 sequence list, 8 audit
stratum             string  name of the stratum polygon that the image lies in; null outside all
dropped_by          string  the filter that keeps the image out of image_files; null where it is selected
first_seen          time    when a harvest first named the image, UTC
last_seen           time    when a harvest last asked about the image, UTC
tombstoned_at       time    when the API first said that the image does not exist any more, UTC; null while it does
source_path         string  path of the photo in the user's folder; null for Mapillary
licence             string  licence of the image
attribution         string  the credit that every product of the image must carry
fetched_at          time    when the metadata was asked, UTC
""",
        sort="image_id",
    ),
    _table(
        "sequence_paths",
        "One row a sequence with a line in the box; the file is GeoParquet.",
        """
sequence_id     string   id of the sequence
n_images        int      images of it in the box that have a position
length_m        float    geodesic length of the line in the box, gaps left out [m]
started_at      time     earliest capture time in the box, UTC
ended_at        time     latest capture time in the box, UTC
creator         string   name of the author; the id where there is no name
image_ids       strings  the images in the order of capture
geometry        binary   LineString or MultiLineString through their positions, WKB [deg, EPSG:4326]
""",
        sort="sequence_id",
    ),
    _table(
        "image_files",
        "One row an image file of the box.",
        """
image_id        string   id of the image
size            string   256, 1024, 2048 or original
path            string   path of the file in the lake
bytes           int      size of the file [B]
sha256          string   SHA-256 of the file
width           int      width [px]
height          int      height [px]
exif_written    bool     whether our EXIF is in the file
resized_path    string   path of the reduced copy in the lake; null where none was asked for
url_expires_at  time     when the address that it was fetched from expires, UTC
status          string   done or dead
reason          string   why a dead file is dead
attempts        int      times it was asked for
""",
        sort="image_id",
    ),
    # reconstruct
    _table(
        "gps_db",
        "One row an image of the box and its margin in the COLMAP database.",
        """
image_id        string   id of the image
colmap_image_id int      id in the COLMAP database, the same in every box of the city
camera_id       int      id of its camera in the database
sequence_id     string   sequence of the image
east_m          float    prior position east of the box origin [m]
north_m         float    prior position north of the box origin [m]
up_m            float    prior position above the box origin [m]
sigma_xy_m      float    horizontal standard deviation of the prior [m]
sigma_z_m       float    vertical standard deviation of the prior [m]
heading_deg     float    heading, clockwise from north [deg]; null where unknown
captured_at     time     capture time, UTC
home_box        string   the box that the image lies in
width           int      width of the file [px]
height          int      height of the file [px]
n_keypoints     int      features found
photo_id        string   the photo that the image is or was cut from: a panorama gives four images
view            int      which of the four views of a panorama, 0 to 3 from the front clockwise; null for a photo
frame_id        int      COLMAP frame; the views of a panorama share one
path            string   file of the pixels in the lake
mask_path       string   file of the mask in the lake (0: ignored); null where there is none
feature_key     string   key of the features in the cache: same pixels, mask, options and version, same features
known_upright   bool     whether the photo is known to stand upright
camera_model    string   COLMAP's camera model
parameters      floats   COLMAP's parameters of the camera before mapping [px]
known_focal     bool     whether the provider or the EXIF says the focal length
given_centre    floats   camera centre by the provider's own reconstruction, east, north, up [m]; null where there is none
given_rotation  floats   rotation camera_from_enu by the provider's own reconstruction, axis-angle [rad]
given_cluster   string   id of the provider's reconstruction that the given pose belongs to
""",
        sort="image_id",
    ),
    _table(
        "match_pairs",
        "One row a chosen pair of images and what matching found.",
        """
image_id_a      string   id of the first image
image_id_b      string   id of the second image
reason          string   why the pair was chosen: ring, sequence, degree, bridge, expansion, vocabulary or listed
distance_m      float    distance of the prior positions [m]
heading_difference_deg float  difference of the headings, 0 to 180 [deg]
n_matches       int      putative matches
n_inliers       int      matches that agree with the two-view geometry
geometry        string   configuration of the two-view geometry
verified        bool     whether the pair has enough inliers to count
fringe          bool     whether the images lie in two different boxes
round           int      0 for pairs chosen by place, 1 and on for rounds of expansion
owner           string   the box that the pair belongs to: the smaller name of the two homes
reused          bool     whether matches were taken from an earlier run or another box
quarantine      string   why the pair is impossible and kept out of mapping; null where it is not
""",
        sort="image_id_a image_id_b",
    ),
    _table(
        "sparse_models",
        "One row a component of the box's reconstruction.",
        """
component       int      number of the component, the largest is 0
status          string   placed, unplaced, or why there is no model: too_few, no_overlap, no_gps, static_scene, not_mapped
reason          string   what an unplaced component lacks, or what kept the box from being mapped; null where placed
route           string   rebuilt, updated or unchanged
n_images        int      images of the box and its margin that could take part
n_home_images   int      those of them that lie in the box
n_registered    int      images registered
n_home_registered int    images of the box registered
n_points        int      points triangulated
reprojection_px float    mean reprojection error [px]
track_length    float    mean number of images that see a point
observations_per_image float  mean number of points that an image observes
gps_median_m    float    median horizontal distance of cameras to their priors [m]
gps_p95_m       float    95th percentile of it [m]
gps_vertical_m  float    median vertical distance of cameras to their priors [m]
roll_deg        float    mean absolute roll of the cameras [deg]
scale_spread    float    relative difference of the scales that both halves of the track ask for
focal_change    float    largest relative change of a camera's focal length against what was known before
largest_gap_m   float    longest way along a sequence between two registered images [m]
border_m        float    largest of the median distances to aligned neighbours on shared cameras [m]; null where the city was not aligned yet
n_blocks        int      blocks that the component was mapped in
n_pairs         int      pairs tried among its images
n_verified      int      pairs of them verified
cpu_seconds     float    processor time of mapping [s]
peak_mb         float    peak memory of the largest process of mapping [MB]
origin_lon      float    longitude of the frame's origin [deg]
origin_lat      float    latitude of the frame's origin [deg]
origin_alt_m    float    height of the frame's origin above the ellipsoid [m]
mapper          string   the mapper that made the component
path            string   folder of the COLMAP model in the lake
""",
        sort="component",
    ),
    _table(
        "model_cameras",
        "One row a registered image: its camera at its true place.",
        """
image_id        string   id of the image
component       int      component of the model
lon             float    longitude of the camera [deg]
lat             float    latitude of the camera [deg]
alt_m           float    height of the camera above the ellipsoid [m]
east_m          float    position east of the frame's origin [m]
north_m         float    position north of the frame's origin [m]
up_m            float    position above the frame's origin [m]
qw              float    rotation of the camera from the frame, quaternion
qx              float    rotation of the camera from the frame, quaternion
qy              float    rotation of the camera from the frame, quaternion
qz              float    rotation of the camera from the frame, quaternion
heading_deg     float    heading, clockwise from north [deg]
home_box        string   the box that the image lies in
n_observations  int      points that the image observes
""",
        sort="image_id",
    ),
    _table(
        "model_blocks",
        "One row a block: a bounded part of a component that one process mapped.",
        """
block           string   key of the block, a hash of its images, pairs and options
component       int      component of the verified graph that it was cut from
n_images        int      images of the block
n_shared        int      images that other blocks hold too
n_registered    int      images registered
mapper          string   the mapper that made its model; null where none did
status          string   mapped, not_mapped, or split after it failed
reason          string   what ended its process; null where nothing did
resumed         bool     whether the model was there from an earlier run
cpu_seconds     float    processor time [s]
peak_mb         float    peak memory [MB]
""",
        sort="block",
    ),
    _table(
        "city_alignment",
        "One row a component: how the joint fit of all boxes of the city moves it.",
        """
box             string   the box
component       int      component of the box
scale           float    scale of the similarity in the box's frame
qw              float    rotation of the similarity, quaternion
qx              float    rotation of the similarity, quaternion
qy              float    rotation of the similarity, quaternion
qz              float    rotation of the similarity, quaternion
east_m          float    translation of the similarity [m]
north_m         float    translation of the similarity [m]
up_m            float    translation of the similarity [m]
moved_m         float    median way of its cameras [m]
n_shared        int      cameras that it shares with other components
gps_median_m    float    median horizontal distance of cameras to their priors after it [m]
roll_deg        float    mean absolute roll of the cameras after it [deg]
""",
        sort="box component",
        partition="city",
    ),
    _table(
        "border_disagreement",
        "One row a pair of components with cameras in common: how far apart they place them.",
        """
box_a           string   the first box
component_a     int      component of the first box
box_b           string   the second box
component_b     int      component of the second box
n_shared        int      cameras in common
before_m        float    median distance of these cameras as published [m]
median_m        float    median distance after the joint fit [m]
max_m           float    largest distance after the joint fit [m]
""",
        sort="box_a component_a box_b component_b",
        partition="city",
    ),
    _table(
        "city_model",
        "One row: all boxes of the city as one COLMAP model.",
        """
n_boxes         int      boxes that take part
n_images        int      registered images
n_points        int      points
reprojection_px float    mean reprojection error [px]
track_length    float    mean number of images that see a point
n_tracks_joined int      tracks that were united across boxes
gps_median_m    float    median horizontal distance of cameras to their priors [m]
origin_lon      float    longitude of the frame's origin [deg]
origin_lat      float    latitude of the frame's origin [deg]
origin_alt_m    float    height of the frame's origin above the ellipsoid [m]
path            string   folder of the COLMAP model in the lake
""",
        partition="city",
    ),
    # splats
    _table(
        "splat_ply",
        "One row: the trained splat of the box and what it is worth.",
        """
status          string   trained, or why not: empty, too_few
engine          string   engine that trained it
engine_version  string   its version
steps           int      optimisation steps
version         string   digest of the PLY files
start           string   what training started from: points, or earlier, the splat that the box had before
started_from    string   version of the earlier splat
n_splats        int      Gaussians
n_registered    int      photos of the sparse model
n_points        int      points of the sparse model
n_components    int      placed components of the box, of which the largest alone is trained
n_train         int      photos trained on
n_holdout       int      photos held out
n_left_out      int      photos that a mask hides nearly altogether, neither trained on nor held out
init_psnr_db    float    PSNR of the held-out photos before training [dB]
psnr_db         float    PSNR of the held-out photos [dB]
ssim            float    SSIM of the held-out photos
cc_psnr_db      float    PSNR of the held-out photos after a colour fit [dB]
sequence_psnr_db float   PSNR of the held-out photos after the gains of their sequences, learnt from photos trained on [dB]
train_psnr_db   float    PSNR of the photos trained on, of 50 evenly spread where there are more [dB]
engine_psnr_db  float    PSNR of the held-out photos as the engine itself says [dB]; null where it does not
n_sky           int      Gaussians of the sky, kept in a file of their own
n_masked        int      photos of which a mask hides a part
in_view_share   float    share of the Gaussians that lie within the picture of some camera
distance_ratio  float    median distance of the Gaussians from the middle of the cameras, over that of the points
size_ratio      float    spread of the Gaussians over that of the points; far from 1 where the engine scaled the scene
width           int      width of the judged photos [px]
height          int      height of the judged photos [px]
ply_bytes       int      size of the PLY file [B]
seconds         float    seconds of training
peak_rss_mb     float    most memory of this process, or of one that it started, until then [MB]
peak_gpu_mb     float    most memory on the GPU as the engine says [MB]; null where it does not
path            string   folder of the splat in the lake
""",
    ),
    _table(
        "splat_views",
        "One row a photo of the splat: how well its render matches.",
        """
image_id        string   id of the image
split           string   train or holdout
psnr_db         float    PSNR [dB]
ssim            float    SSIM
cc_psnr_db      float    PSNR after a colour fit [dB]
sequence_psnr_db float   PSNR after the gains of its sequence [dB]; of held-out photos
""",
        sort="image_id",
    ),
    _table(
        "splat_city",
        "One row a box of the city's common scene.",
        """
box             string   the box
n_splats        int      Gaussians of the box that lie in its cell
n_pieces        int      pieces that it is streamed in, at all levels of detail
bytes           int      size of these [B]
aligned         bool     whether the joint alignment of the city moved it
seam_m          float    nine tenths of the edges that it and a box beside it both show differ by less [m], with the worst such box
lon             float    longitude of the box frame's origin [deg]
lat             float    latitude of the box frame's origin [deg]
alt_m           float    height of the box frame's origin above the ellipsoid [m]
path            string   the box's splat in the lake
""",
        sort="box",
        partition="city",
    ),
    # geotag
    _table(
        "placing_2016",
        "One row a photo of the 2016 Placing shards; the photo stays in its shard unless it was extracted.",
        PHOTO_COLUMNS
        + """
shard_file    string   the shard, relative to the folder of the photo set
offset        int      first byte of the JPEG in the shard; null where the record holds no image
bytes         int      size of the JPEG; null where the record holds no image
file          string   the extracted JPEG in the lake; null where it was not extracted
""",
        sort="photo_id path offset",
        partition="shard",
        key=REPEATS,
    ),
    _table(
        "landmark_coordinates",
        "One row a landmark of Google Landmarks v2: where it is, who says so, or why nobody does.",
        """
landmark_id    string   id of the landmark; ids of the index set begin with index/
category       string   title of its category on Wikimedia Commons; null where no file names it
wikidata_id    string   the Wikidata item that the coordinate is of, or that was asked
lon            float    longitude [deg]; null unless the status is found
lat            float    latitude [deg]; null unless the status is found
precision_deg  float    precision that the source states [deg]; null where it does not
origin         string   csv, geo_tags (the category's own), P625 (its item), P301 (the item's topic) or dump
status         string   found, missing (no such category), no_coordinate, or error: only errors are asked again
reason         string   what went wrong, or which redirects were followed
kind           string   natural or human-made, as train_label_to_hierarchical.csv says; null where it does not
hierarchy      string   hierarchical label of the same file
fetched_at     time     when the answer came; null for what a file says
""",
        sort="landmark_id",
        partition="part",
    ),
    _table(
        "google_landmark",
        "One row a photo of Google Landmarks v2 whose landmark has a coordinate.",
        PHOTO_COLUMNS,
        sort="photo_id",
        partition="",
        key=REPEATS,
    ),
    _table(
        "flickr_geotag",
        "One row a photo of the Flickr geotag set.",
        PHOTO_COLUMNS,
        sort="photo_id",
        partition="",
        key=REPEATS,
    ),
    _table(
        "geotag_rejects",
        "One row a record that was not taken, and why.",
        """
file            string   the file
row             string   row or record in the file, from 0
reason          string   why it was not taken
value           string   the offending value
""",
        sort="file row",
        partition="source part",
        key=REPEATS,
    ),
    _table(
        "geotag_combined",
        "One row a photo of any source, once.",
        PHOTO_COLUMNS
        + """
split           string   train, validation or test, by place
""",
        sort="source photo_id",
        partition="",
    ),
    _table(
        "geotag_points",
        "One row a place: the distinct coordinates of geotag_combined, without those flagged null_island.",
        """
point_id        int      number of the place, by longitude and latitude
lon             float    longitude [deg], -180 instead of 180
lat             float    latitude [deg]
n_photos        int      photos there
n_sources       int      photo sets that have a photo there
""",
        sort="point_id",
        partition="",
    ),
    _table(
        "place_tiles",
        "One row a tile that the spanning tree is found in; only where geotag.tiles is above 1.",
        """
tile            string   partition of tile_cores and tile_trees, in order along the Hilbert curve
n_points        int      places in the tile
""",
        sort="tile",
        partition="",
    ),
    _table(
        "tile_cores",
        "One row: core distances of the places of a tile were found.",
        """
n_points        int      places in the tile
core_m          float    median core distance [m]; null without places
""",
        partition="tile",
    ),
    _table(
        "tile_trees",
        "One row: the spanning tree of a tile was found.",
        """
n_points        int      places in the tile
n_open          int      edges of its tree that an edge to another tile may yet replace
""",
        partition="tile",
    ),
    _table(
        "hdbscan_model",
        "One row a unique coordinate: its cluster.",
        """
point_id        int      number of the point, by longitude and latitude
lon             float    longitude [deg]
lat             float    latitude [deg]
n_photos        int      photos at the coordinate
cluster         int      cluster, -1 for noise
probability     float    strength of the membership, 0 to 1
""",
        sort="point_id",
        partition="",
    ),
    _table(
        "hdbscan_tree",
        "One row an edge of the condensed tree.",
        """
parent          int      parent cluster
child           int      child cluster or point
density         float    density at which the child leaves, 1 / arc length [1/m]
size            int      points in the child
""",
        sort="parent child",
        partition="",
    ),
    _table(
        "hierarchy_centroids",
        "One row a cell of a level; level 0 is the finest, the root is the highest.",
        """
level           int      level, 0 is the finest
cell_id         int      cell within its level
parent_id       int      cell of the next level that contains it; null for the root
lon             float    longitude of the spherical mean [deg]
lat             float    latitude of the spherical mean [deg]
medoid_lon      float    longitude of the point nearest to the mean [deg]
medoid_lat      float    latitude of the point nearest to the mean [deg]
n_photos        int      photos in the cell
n_points        int      unique coordinates in the cell
n_noise_filled  int      coordinates that were noise and joined their nearest cluster
n_children      int      cells of the level below
mean_km         float    mean distance of the photos to the mean [km]
std_km          float    standard deviation of that distance [km]
p50_km          float    median of that distance [km]
p90_km          float    90th percentile of that distance [km]
p95_km          float    95th percentile of that distance [km]
max_km          float    greatest of these distances [km]
resultant       float    length of the mean unit vector; near 0 the centroid means nothing
s2_token        string   S2 cell of level 30 that holds the medoid, as a token
""",
        sort="level cell_id",
        partition="",
    ),
    _table(
        "photo_cells",
        "One row a photo: its cell at each level.",
        """
photo_id        string   id of the photo within its source
source          string   source of the photo
point_id        int      its coordinate in hdbscan_model
cells           strings  cell at each level as level:cell_id, finest first
is_noise        bool     whether its point was noise at level 0
""",
        sort="source photo_id",
        partition="",
    ),
    _table(
        "hierarchical_structure",
        "One row a cell: the cells below it; the root first, as training scripts walk it.",
        """
level           int      level, 0 is the finest
cell_id         int      cell within its level
path            strings  level:cell_id of the cells above it, the highest first, without the root
n_photos        int      photos in the cell
children        strings  level:cell_id of the cells of the level below, in order
""",
        sort="",
        partition="",
        key="level cell_id",
    ),
    _table(
        "s2_cells",
        "One row a cell of S2, cut in four while it holds many photos; with few it is dropped.",
        f"""
level           int      level, 0 is the finest
cell_id         string   S2 token of the cell
cuts            int      how often a face of the globe was cut to make it
{_OF_PHOTOS}
west            float    western border [deg] of the bounding box; greater than the eastern one across the antimeridian
south           float    southern border [deg]
east            float    eastern border [deg]
north           float    northern border [deg]
""",
        sort="level cell_id",
        partition="",
    ),
    _table(
        "quadtree_cells",
        "One row a box of degrees, cut in four while it holds many photos; with few it is dropped.",
        f"""
level           int      level, 0 is the finest
cell_id         string   quadkey: a digit a cut from the whole world, 1 added for its east, 2 for its north
cuts            int      how often the whole world was cut to make it
{_OF_PHOTOS}
west            float    western border [deg]
south           float    southern border [deg]
east            float    eastern border [deg]
north           float    northern border [deg]
""",
        sort="level cell_id",
        partition="",
    ),
    _table(
        "partition_errors",
        "One row a level of a partition of the world: how far off its cells are for photos that did not make them.",
        """
partition       string   hierarchy, clusters (its noise left out), kmeans, s2, quadtree, s2_cells, quadtree_cells, or a published one
level           int      level, 0 is the finest, and there may be only one; kmeans, s2 and quadtree have as many cells as the hierarchy
n_cells         int      cells
n_test          int      photos held out, by place
covered         float    share of them that lie in a cell
within_1_km     float    share of all held-out photos within 1 km of their cell's centroid
within_25_km    float    share within 25 km
within_200_km   float    share within 200 km
within_750_km   float    share within 750 km
within_2500_km  float    share within 2,500 km
median_km       float    median distance of the covered ones [km]
mean_km         float    mean distance of the covered ones [km]
effective_cells float    exponential of the entropy of the photos over the cells
gini            float    Gini coefficient of photos over cells
""",
        sort="partition level",
        partition="",
    ),
    # platform
    _table(
        "run_records",
        "One row an attempt of a step of a run that has ended: what Dagster recorded of it.",
        """
run_id          string   id of the run
step            string   step of the run
attempt         int      attempt of the step, from 1
asset           string   the asset that the step made, or the check that it asked
partition       string   partition of the run, or first and last of its range; null where it has none
city            string   city of the partition; null where it is of none
box             string   box of the partition; null where it is of none
status          string   done or failed
started_at      time     when the attempt began, UTC
ended_at        time     when it ended, UTC
seconds         float    time between the two [s]
bytes           int      size of what it wrote, as the asset says [B]; null where it does not
requests        int      requests to the imagery API, as the asset says; null where it does not
n_images        int      images, as the asset says; null where it does not
""",
        sort="ended_at run_id step attempt",
        partition="",
    ),
]

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
