"""One typed settings object: ``geo_assets.toml``, then environment variables, then defaults.

Environment variables begin with ``GEO_ASSETS_`` and name nested fields with two underscores, as in
``GEO_ASSETS_MAPILLARY__GRAPH_URL``. The token is read from ``MAPILLARY_TOKEN`` alone and never written.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

import tomlkit
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from geo_assets.errors import ConfigError, did_you_mean
from geo_assets.files import replacing
from geo_assets.grid import Bounds, Grid, box_name

MAX_KEYS = 25_000
DEMO_CITY = "demo"
EMBEDDED = "embedded:demo"
_CITY_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Select(_Part):
    """Which of a city's images are wanted as files; metadata are harvested of all, so that filters can change."""

    since: dt.datetime | None = Field(default=None, description="earliest capture time; without a zone it is UTC")
    until: dt.datetime | None = Field(default=None, description="latest capture time; without a zone it is UTC")
    panoramas: bool = Field(default=True, description="whether panoramas are wanted")
    makes: tuple[str, ...] = Field(default=(), description="makers of cameras, any case; empty: all")
    models: tuple[str, ...] = Field(default=(), description="models of cameras, any case; empty: all")
    organizations: tuple[str, ...] = Field(default=(), description="ids of organisations; empty: all")
    creators: tuple[str, ...] = Field(default=(), description="names or ids of authors; empty: all")
    spacing_m: float = Field(default=0.0, ge=0, description="least distance along a sequence [m]; 0: every image")
    strata: Path | None = Field(default=None, description="GeoJSON of polygons with a name: urban, say")
    stratum_spacing_m: dict[str, float] = Field(
        default={}, description="spacing inside a stratum [m]; elsewhere spacing_m holds"
    )
    limit: int = Field(default=0, ge=0, description="most images of a box; 0: all")


class City(_Part):
    """A city: its bounds, the recorded origin of its grid, and where its images come from."""

    bbox: tuple[float, float, float, float] = Field(description="west, south, east, north [deg, EPSG:4326]")
    origin: tuple[float, float] | None = Field(
        default=None, description="lon, lat of the grid's south-west corner [deg]"
    )
    box_m: float = Field(default=500.0, gt=0, description="side of a box [m]")
    photos: Path | None = Field(default=None, description="folder of geotagged photos instead of Mapillary")
    aoi: Path | None = Field(default=None, description="GeoJSON polygon; images outside are dropped")
    graph_url: str | None = Field(
        default=None, description="an imagery server of this city's own; 'embedded:demo' is ours"
    )
    tiles_url: str | None = Field(default=None, description="the coverage tiles of that server")
    select: Select = Field(default=Select(), description="which images are wanted as files")
    masks: Path | None = Field(
        default=None,
        description="folder of PNG masks (0: ignored) named by image, sequence or camera: 123.png, <sequence>.png, <make> <model>.png",
    )
    pairs: Path | None = Field(
        default=None, description="COLMAP pair list of your own: two image names a line, matched beside the chosen ones"
    )
    splats: dict[str, Any] = Field(default={}, description="settings of the section splats that differ for this city")

    @field_validator("bbox")
    @classmethod
    def _ordered(cls, bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        west, south, east, north = bbox
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise ValueError(
                f"bbox must be west, south, east, north in degrees with west < east and south < north, got {list(bbox)}"
            )
        return bbox

    @property
    def bounds(self) -> Bounds:
        """The city's bounds in degrees."""
        return Bounds(*self.bbox)

    @property
    def grid(self) -> Grid:
        """The grid of boxes, counted from the recorded origin so that names never move."""
        lon, lat = self.origin or self.bbox[:2]
        return Grid.over(Bounds(lon, lat, self.bbox[2], self.bbox[3]), self.box_m)


class Mapillary(_Part):
    """The imagery API and how politely it is asked."""

    graph_url: str = Field(
        default="https://graph.mapillary.com", description="where images and sequences are asked for"
    )
    tiles_url: str = Field(default="https://tiles.mapillary.com", description="where the coverage tiles are")
    image_size: Literal["256", "1024", "2048", "original"] = Field(
        default="2048", description="long side of the files [px], or the photo as it was taken"
    )
    resize: tuple[int, int] | None = Field(
        default=None, description="width and height [px] into which a reduced copy of each file is fitted"
    )
    connections: int = Field(default=64, ge=1, description="most requests in flight")
    searches_per_minute: int = Field(default=10_000, description="documented limit of /images?bbox=")
    entities_per_minute: int = Field(default=60_000, description="documented limit of /:id and /images?image_ids=")
    tiles_per_minute: int = Field(default=60, description="the tile host blocks an address that asks faster")
    tiles_fresh_for_s: float = Field(
        default=6 * 3600.0, ge=0, description="a tile this young serves all its boxes from the lake"
    )
    answers_fresh_for_s: float = Field(
        default=21 * 86_400.0, ge=0, description="age up to which kept answers about an unchanged box are believed"
    )
    timeout_s: float = Field(default=60.0, description="longest wait for an answer [s]")


class Reconstruct(_Part):
    """COLMAP: features, pairs and mapping of a box."""

    margin_m: float = Field(default=60.0, description="images this far outside the box are matched with it")
    gps_sigma_m: float = Field(default=3.0, description="horizontal standard deviation of a position")
    altitude_sigma_m: float = Field(default=10.0, description="vertical standard deviation of a position")
    max_image_px: int = Field(default=2048, description="features are found in a copy with this long side [px]")
    max_features: int = Field(default=4096, description="most features of an image")
    min_images: int = Field(default=5, description="a box with fewer images is not reconstructed")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where features are found and matched; auto: the GPU if this pycolmap has one"
    )
    panoramas: Literal["rig", "spherical", "off"] = Field(
        default="rig", description="four level views of a panorama (for splats), the sphere itself, or none"
    )
    keep_every_m: float = Field(
        default=1.0, ge=0, description="of a vehicle that stands or crawls, one image each so many metres [m]"
    )
    rings_m: tuple[float, ...] = Field(default=(6.0, 15.0, 30.0, 60.0), description="outer radii of the rings [m]")
    ring_quotas: tuple[int, ...] = Field(
        default=(4, 8, 6, 4),
        description="most partners of an image in each ring; what a ring leaves over goes to the next",
    )
    max_pairs_per_image: float = Field(default=20.0, gt=0, description="budget of pairs, as a mean over the images")
    expansion_rounds: int = Field(default=2, ge=0, description="rounds of pairs of pairs at the border of a box")
    vocabulary_tree: bool = Field(default=False, description="also match the most similar images by a vocabulary tree")
    given_poses: Literal["auto", "off", "only"] = Field(
        default="auto",
        description="triangulate on the provider's own poses: where they are good, never, or without any other way",
    )
    block_images: int = Field(default=500, ge=20, description="most images that one process maps at once")
    block_shared: int = Field(default=50, ge=5, description="images that two neighbouring blocks share")
    block_timeout_s: float = Field(default=3600.0, gt=0, description="a block that takes longer is cut in two")
    block_memory_mb: float = Field(default=16_000.0, gt=0, description="a block that takes more is cut in two")
    rebuild_share: float = Field(
        default=0.25, ge=0, le=1, description="a box of which a larger share of images changed is built anew"
    )
    threads: int = Field(
        default=0, description="0: one for each core; a block is mapped on one, so that it can be repeated"
    )
    seed: int = Field(default=0, description="seed of what is drawn at random; the same seed gives the same bytes")


class Splats(_Part):
    """Training of the splat of a box; what is left open is set by the engine that trains."""

    engine: str = Field(default="auto", description="an entry point of the group geo_assets.splat_engines, or auto")
    steps: int | None = Field(default=None, ge=1, description="optimisation steps: 3,000 on a CPU, 30,000 on a GPU")
    max_splats: int | None = Field(
        default=None, ge=1, description="most Gaussians: 30,000 on a CPU, 1 million on a GPU"
    )
    sh_degree: int | None = Field(default=None, ge=0, le=3, description="spherical harmonics: 1 on a CPU, 3 on a GPU")
    max_image_px: int | None = Field(
        default=None, ge=16, description="long side that photos are reduced to: 480 px on a CPU, 1,920 px on a GPU"
    )
    learning_rate_scale: float = Field(
        default=2.0, gt=0, description="factor on the rates of cpu, and of gsplat below 5,000 steps"
    )
    exposure: Literal["auto", "off", "sequence", "image"] = Field(
        default="auto", description="what has an exposure of its own; auto looks at the photos"
    )
    masks: bool = Field(default=True, description="train only on what the city's masks leave")
    holdout_every: int = Field(default=8, ge=2, description="each n-th photo by name is held out and judges the splat")
    warm_start: bool = Field(
        default=True, description="a box whose model was brought up to date goes on from its earlier splat"
    )
    refresh_share: float = Field(
        default=0.3, gt=0, le=1, description="steps of a training from an earlier splat, as a share of a whole one"
    )
    timeout_s: float | None = Field(default=None, gt=0, description="a training that takes longer is ended [s]")
    threads: int = Field(default=0, description="0: up to four cores")
    seed: int = Field(default=0, description="seed of what is drawn at random; the same seed gives the same bytes")
    brush: Path | None = Field(default=None, description="the program of Brush, where it is not on PATH")
    opensplat: Path | None = Field(default=None, description="the program of OpenSplat, where it is not on PATH")
    nerfstudio: Path | None = Field(default=None, description="ns-train of Nerfstudio, where it is not on PATH")
    gsplat_python: Path | None = Field(
        default=None, description="a Python that has gsplat and torch with CUDA, where this one has not"
    )
    command: str | None = Field(
        default=None,
        description="your own trainer: {dataset} {out_ply} {steps} {max_splats} {sh_degree} {seed} {masks} {holdout_every} are filled in",
    )
    extra_args: tuple[str, ...] = Field(default=(), description="more arguments for an external program")


class Wikimedia(_Part):
    """The two APIs that know where landmarks are, and how politely they are asked."""

    commons_url: str = Field(default="https://commons.wikimedia.org/w/api.php", description="the API of Commons")
    wikidata_url: str = Field(default="https://www.wikidata.org/w/api.php", description="the API of Wikidata")
    ask: bool = Field(default=True, description="whether the APIs are asked for landmarks that no file places")
    contact: str | None = Field(
        default=None, description="a mail address or URL of yours; sent in the User-Agent, as Wikimedia asks"
    )
    per_minute: float | None = Field(
        default=None, gt=0, description="requests a minute; 200 with a contact and 10 without; accounts have 2,000"
    )
    connections: int = Field(default=3, ge=1, le=3, description="requests in flight; Wikimedia wants three at most")
    maxlag_s: int = Field(default=5, ge=1, description="lag of their replicas above which they tell us to wait [s]")
    timeout_s: float = Field(default=60.0, gt=0, description="longest wait for an answer [s]")
    renew_before: dt.datetime | None = Field(default=None, description="answers older than this are asked for again")
    dumps: Path | None = Field(
        default=None, description="folder of SQL dumps (page, page_props, geo_tags), read instead of asking"
    )


class Geotag(_Part):
    """The photo sets, how they become one table, and how its coordinates are clustered."""

    placing_2016: Path | None = Field(default=None, description="folder of *.msg shards")
    google_landmark: Path | None = Field(default=None, description="folder of the train*.csv files")
    flickr_geotag: Path | None = Field(default=None, description="folder of photos with EXIF, or of CSV files")
    extract: bool = Field(default=False, description="write the photos of the Placing shards as files into the lake")
    landmark_index: bool = Field(default=False, description="take the index photos of Google Landmarks as well")
    landmarks: int = Field(default=203_094, ge=1, description="landmark ids of the train set lie below this")
    index_landmarks: int = Field(default=101_302, ge=1, description="landmark ids of the index set lie below this")
    landmarks_per_part: int = Field(default=2500, ge=50, description="landmarks of a partition; 50 are one call")
    wikimedia: Wikimedia = Field(default=Wikimedia(), description="how Wikimedia is asked")
    split_cell_deg: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="photos of one cell of this size are all learnt, or all validated, or all tested",
    )
    validation_share: float = Field(default=0.1, ge=0, lt=0.5, description="share of the cells that validate")
    test_share: float = Field(default=0.1, ge=0, lt=0.5, description="share of the cells that test")
    memory_gb: float = Field(default=3.0, gt=0, description="most memory that a query over all photos takes [GB]")
    processes: int | None = Field(default=None, ge=1, description="processes that read EXIF; all cores by default")
    engine: Literal["own", "hdbscan"] = Field(
        default="own",
        description="who finds the spanning tree: our own code, or the hdbscan library (the same tree, slower)",
    )
    min_cluster_size: int = Field(default=5, ge=2, description="fewest places of a cluster")
    min_samples: int = Field(default=2, ge=1, description="neighbours that make a place dense, itself not counted")
    tiles: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="tiles that the spanning tree is found in, each a partition; 1 finds it in one piece, in memory",
    )
    method: Literal["tree", "kmeans"] = Field(
        default="tree",
        description="how levels above the clusters are made: by the tree, or as earlier scripts meant to",
    )
    level_exponents: tuple[float, ...] = Field(
        default=(0.75, 0.5), description="cells of each higher level, as powers of the clusters"
    )

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        if self.tiles > 1 and self.engine != "own":
            raise ValueError(f"engine {self.engine} works in one piece; set tiles = 1, or engine = 'own'")
        return self

    s2_photos: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        default=((50, 1000), (50, 2000), (50, 5000)),
        description="S2 cells, the finest level first: below the first number of photos dropped, above the second cut "
        "in four; as GeoEstimation publishes them",
    )
    quadtree_photos: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        default=((1, 1000),), description="the same for boxes of degrees, as OSV-5M cuts them"
    )
    quadtree_depth: int = Field(
        default=10, ge=1, le=31, description="cuts of the box of all degrees; 10 in OSV-5M: 0.35 by 0.18 degrees"
    )


class Automation(_Part):
    """What the platform does by itself: sensors, schedules and what follows from them."""

    enabled: bool = Field(default=False, description="the one switch: sensors and schedules run from the start")
    tiles_per_day: int = Field(default=2_000, ge=1, description="most coverage tiles asked in a day, for all cities")
    look_every_s: float = Field(
        default=86_400.0, ge=0, description="time from one look at a city's coverage tiles to the next [s]"
    )
    refit_share: float = Field(
        default=0.05, gt=0, description="new photos, as a share of those clustered, that make a new version worthwhile"
    )
    refit_photos: int = Field(default=10_000, ge=1, description="new photos that make one worthwhile in any case")
    refit_cron: str = Field(default="0 3 * * *", description="when the clustering is looked at, as cron says it, UTC")


class Demo(_Part):
    """The embedded demo city."""

    enabled: bool = Field(default=True, description="whether the drawn city and its photo sets are there")


class Settings(BaseSettings):
    """Everything that can be configured; read it with :func:`load`."""

    model_config = SettingsConfigDict(env_prefix="GEO_ASSETS_", env_nested_delimiter="__", extra="forbid", frozen=True)

    lake: str = Field(default="lake", description="folder or fsspec URL that holds every table and file")
    cities: dict[str, City] = Field(default={}, description="the cities by name: [cities.NAME]")
    mapillary: Mapillary = Mapillary()
    reconstruct: Reconstruct = Reconstruct()
    splats: Splats = Splats()
    geotag: Geotag = Geotag()
    automation: Automation = Automation()
    demo: Demo = Demo()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file: a deployment overrides what the repository says."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=settings_path())

    def city(self, name: str) -> City:
        """One city by name.

        Raises:
            ConfigError: no such city.
        """
        if name not in self.cities:
            raise ConfigError(
                f"No city '{name}' in the settings; known: {', '.join(self.cities) or 'none'}.{did_you_mean(name, self.cities)}"
                f" Add it with: geo-assets city add {name} --bbox W,S,E,N"
            )
        return self.cities[name]

    def box(self, city: str, name: str) -> str:
        """The name of a box that the city has.

        Raises:
            ConfigError: no such city, or no such box.
        """
        grid = self.city(city).grid
        if name not in grid:
            raise ConfigError(
                f"{city} has no box {name}; its grid is {grid.rows} rows by {grid.columns} columns.{_box_like(name, grid)}"
                f" Those that hold images: geo-assets city show {city}"
            )
        return name

    def splats_of(self, city: str) -> Splats:
        """How the splats of a city are trained: the section splats, with what differs for the city.

        Raises:
            ConfigError: no such city, or one of its values is unknown or wrong.
        """
        try:
            return Splats(**self.splats.model_dump() | self.city(city).splats)
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"cities.{city}.splats: {lines}.") from None

    @property
    def boxes(self) -> list[str]:
        """Names of all boxes of the largest grid, in order; every city's boxes are among them."""
        return list(self._largest_grid)

    def touching_boxes(self) -> dict[str, list[str]]:
        """For each of these names itself and those that touch it."""
        return self._largest_grid.touching()

    @property
    def _largest_grid(self) -> Grid:
        rows = max((c.grid.rows for c in self.cities.values()), default=1)
        columns = max((c.grid.columns for c in self.cities.values()), default=1)
        return Grid(0, 0, 1, rows, columns)

    @property
    def n_keys(self) -> int:
        """How many partition keys the cities make together."""
        return len(self.cities) * len(self._largest_grid)


def settings_path() -> Path:
    """The settings file: ``GEO_ASSETS_SETTINGS`` or ``geo_assets.toml`` in the working directory."""
    return Path(os.environ.get("GEO_ASSETS_SETTINGS", "geo_assets.toml")).absolute()


def mapillary_token() -> SecretStr | None:
    """The token of ``MAPILLARY_TOKEN``, wrapped so that no log or metadata prints it."""
    token = os.environ.get("MAPILLARY_TOKEN", "").strip()
    return SecretStr(token) if token else None


def wikimedia_token() -> SecretStr | None:
    """The token of ``WIKIMEDIA_TOKEN`` (an account may ask more often), wrapped so that nothing prints it."""
    token = os.environ.get("WIKIMEDIA_TOKEN", "").strip()
    return SecretStr(token) if token else None


def load() -> Settings:
    """Read and check the settings; relative paths are relative to the settings file.

    Raises:
        ConfigError: the file does not parse, a field is unknown or wrong, or the grid is too large.
    """
    path = settings_path()
    try:
        settings = Settings()
    except ValidationError as error:
        problems = [_said(problem) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{path.name}: {'; '.join(problems)}.", problems=problems) from None
    except ValueError as error:
        raise ConfigError(
            f"{path.name} is not valid TOML: {error}. Correct the line, or move the file away to start anew."
        ) from None
    settings = _anchored(_with_demo(settings), path.parent)
    _check_names(settings)
    _check_size(settings)
    for name in settings.cities:
        settings.splats_of(name)
    return settings


def add_city(name: str, city: City) -> Path:
    """Write a city to the settings file, comments kept; the grid's origin is recorded so that box names never move.

    Raises:
        ConfigError: the name is taken or not usable as a partition key, or the grid would be too large.
    """
    settings = load()
    if name in settings.cities:
        raise ConfigError(
            f"City '{name}' exists already. Remove it from {settings_path().name} first, or choose another name."
        )
    updated = settings.model_copy(update={"cities": settings.cities | {name: city}})
    _check_names(updated)
    _check_size(updated)
    path = settings_path()
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    cities = document.setdefault("cities", tomlkit.table(is_super_table=True))
    cities[name] = _toml_of(city)
    with replacing(path) as sink:
        sink.write(tomlkit.dumps(document).encode())
    return path


def _box_like(name: str, grid: Grid) -> str:
    """The box that a name without leading zeros, or in capitals, stands for."""
    numbers = re.findall(r"\d+", name)
    meant = box_name(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else ""
    return f" Did you mean '{meant}'?" if meant in grid else " A name is r00c00, row and column from the south-west."


def remove_city(name: str) -> Path:
    """Take a city out of the settings file, all comments but its own kept; what the lake holds of it stays.

    Raises:
        ConfigError: the file has no such city; the demo city is none of the file's.
    """
    path = settings_path()
    known = load().cities
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    cities = document.get("cities", {})
    if name not in cities:
        if name == DEMO_CITY and name in known:
            raise ConfigError(
                f"The demo city is not of {path.name} but built in. To do without it write there: [demo] and below it enabled = false."
            )
        raise ConfigError(f"{path.name} has no city '{name}'; known: {', '.join(known)}.{did_you_mean(name, known)}")
    del cities[name]
    if not cities:
        del document["cities"]
    with replacing(path) as sink:
        sink.write(tomlkit.dumps(document).encode())
    return path


def _said(problem: Any) -> str:
    """One error of a settings file: the field, what is wrong with it, and for an unknown one what is nearest."""
    where = ".".join(map(str, problem["loc"])) or "settings"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}"
    part: Any = Settings
    for name in problem["loc"][:-1]:
        field = part.model_fields.get(name) if isinstance(part, type) and issubclass(part, BaseModel) else None
        part = City if field is None else field.annotation
    known = part.model_fields if isinstance(part, type) and issubclass(part, BaseModel) else City.model_fields
    return f"{where}: there is no such setting.{did_you_mean(str(problem['loc'][-1]), known)} Correct the name, or take it out"


def _toml_of(city: City) -> Any:
    table = tomlkit.table()
    for field, value in city.model_dump(exclude_none=True, exclude_defaults=True).items():
        table[field] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    table["origin"] = list(city.origin or city.bbox[:2])
    table["box_m"] = city.box_m
    return table


def _with_demo(settings: Settings) -> Settings:
    if not settings.demo.enabled or DEMO_CITY in settings.cities:
        return settings
    from geo_assets.demo.place import demo_city  # small: no rendering is imported

    return settings.model_copy(update={"cities": {DEMO_CITY: demo_city(), **settings.cities}})


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Relative paths of the file made absolute, so that every process of a run means the same place."""
    lake = settings.lake if "://" in settings.lake else str((folder / settings.lake).absolute())
    cities = {name: _anchored_city(city, folder) for name, city in settings.cities.items()}
    names = ("placing_2016", "google_landmark", "flickr_geotag")
    geotag = settings.geotag.model_copy(
        update={k: (folder / v).absolute() for k in names if (v := getattr(settings.geotag, k)) is not None}
    )
    if dumps := geotag.wikimedia.dumps:
        wikimedia = geotag.wikimedia.model_copy(update={"dumps": (folder / dumps).absolute()})
        geotag = geotag.model_copy(update={"wikimedia": wikimedia})
    return settings.model_copy(update={"lake": lake, "cities": cities, "geotag": geotag})


def _anchored_city(city: City, folder: Path) -> City:
    paths = {
        k: (folder / v).absolute() for k in ("photos", "aoi", "masks", "pairs") if (v := getattr(city, k)) is not None
    }
    strata = city.select.strata
    select = city.select if strata is None else city.select.model_copy(update={"strata": (folder / strata).absolute()})
    return city.model_copy(update={**paths, "select": select})


def _check_names(settings: Settings) -> None:
    for name in settings.cities:
        if not _CITY_NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' cannot name a city: use lower-case letters, digits and underscores, beginning with a letter (san_francisco)."
            )


def _check_size(settings: Settings) -> None:
    if settings.n_keys > MAX_KEYS:
        largest = max(settings.cities, key=lambda name: len(settings.cities[name].grid))
        n_cities = len(settings.cities)
        raise ConfigError(
            f"{n_cities} cities x {settings.n_keys // n_cities:,} boxes are {settings.n_keys:,} partition keys, more than "
            f"{MAX_KEYS:,}. The largest city is {largest} with {len(settings.cities[largest].grid):,} boxes: give it a "
            "larger box_m, or put it into a code location of its own in workspace.yaml.",
            n_keys=settings.n_keys,
        )
