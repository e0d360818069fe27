-- One row a sequence of a city, over all boxes that it passes: its way as a line, its images, its files, and when.
-- partition: city
-- city: The city.
-- sequence_id: Id of the sequence.
-- creator: Name of the author; the id where there is no name.
-- n_boxes: Boxes that hold an image of it.
-- n_images: Images of it in the city that still exist.
-- n_listed: Images of the whole sequence by the provider's list, inside the city or not; null where there is no list.
-- n_selected: Images of it that the city's filters keep.
-- n_files: Files of it that are there.
-- n_panoramas: Panoramas among its images.
-- length_m: Length of the line on the ellipsoid [m]; null where it has no line.
-- line: WKT through its images in the order of capture, interrupted where two are more than 200 m apart [deg, EPSG:4326].
-- started_at: Earliest capture time, UTC.
-- ended_at: Latest capture time, UTC.
-- test: unique(city, sequence_id)
-- check: n_selected <= n_images
-- test: accepted_range(length_m, 0, null)
with placed as (
    select
        i.city,
        i.sequence_id,
        i.image_id,
        i.lon,
        i.lat,
        -- The device's own clock decides, for a wrong one still runs forward.
        coalesce(m.captured_at_ms, epoch_ms(i.captured_at)) as captured_ms
    from stg_images i
    join image_metadata m on m.city = i.city and m.box = i.box and m.image_id = i.image_id
    where i.sequence_id is not null and i.lon is not null and i.lat is not null
    -- An image that moved to another box may still stand in its former one.
    qualify row_number() over (partition by i.city, i.image_id order by m.fetched_at desc nulls last, i.box) = 1
),
steps as (
    select
        *,
        lag(lon) over way as lon_before,
        lag(lat) over way as lat_before,
        sin(radians(lat)) ^ 2 as s
    from placed
    window way as (partition by city, sequence_id order by captured_ms nulls last, image_id)
),
legs as (
    select
        *,
        -- Radii of curvature of WGS84, along the meridian and across it: exact for steps as short as these.
        sqrt(
            (6378137.0 * (1 - 0.00669437999014) / (1 - 0.00669437999014 * s) ^ 1.5 * radians(lat - lat_before)) ^ 2
            + (6378137.0 / sqrt(1 - 0.00669437999014 * s) * cos(radians(lat)) * radians(lon - lon_before)) ^ 2
        ) as leg_m
    from steps
),
numbered as (
    select
        *,
        coalesce(leg_m, 1e9) > 200 as starts,
        count(*) filter (where coalesce(leg_m, 1e9) > 200) over way as part
    from legs
    window way as (partition by city, sequence_id order by captured_ms nulls last, image_id)
),
parts as (
    select
        city,
        sequence_id,
        part,
        sum(leg_m) filter (where not starts) as length_m,
        '(' || string_agg(lon || ' ' || lat, ', ' order by captured_ms nulls last, image_id) || ')' as points
    from numbered
    -- A vehicle that stood still adds no point.
    where starts or leg_m > 0
    group by city, sequence_id, part
    having count(*) > 1
),
lines as (
    select
        city,
        sequence_id,
        sum(length_m) as length_m,
        'MULTILINESTRING (' || string_agg(points, ', ' order by part) || ')' as line
    from parts
    group by city, sequence_id
),
images as (
    select
        city,
        sequence_id,
        min(creator) as creator,
        count(distinct box) as n_boxes,
        count(*) as n_images,
        count(*) filter (where dropped_by is null) as n_selected,
        count(*) filter (where file_status = 'done') as n_files,
        count(*) filter (where is_pano) as n_panoramas,
        min(captured_at) as started_at,
        max(captured_at) as ended_at
    from stg_images
    where sequence_id is not null
    group by city, sequence_id
),
listed as (
    select city, sequence_id, max(n_images) as n_listed
    from sequence_ids
    where closed
    group by city, sequence_id
)
select
    i.city,
    i.sequence_id,
    i.creator,
    i.n_boxes,
    i.n_images,
    l.n_listed,
    i.n_selected,
    i.n_files,
    i.n_panoramas,
    g.length_m,
    g.line,
    i.started_at,
    i.ended_at
from images i
left join listed l on l.city = i.city and l.sequence_id = i.sequence_id
left join lines g on g.city = i.city and g.sequence_id = i.sequence_id
order by i.city, i.sequence_id
