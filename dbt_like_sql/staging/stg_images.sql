-- One row an image of any city that still exists: its best position, its author and the state of its file.
-- partition: city
-- city: The city.
-- box: The box.
-- image_id: Id of the image.
-- sequence_id: Sequence of the image.
-- lon: Longitude, corrected by structure from motion where it is [deg].
-- lat: Latitude, corrected by structure from motion where it is [deg].
-- captured_at: Capture time, UTC.
-- is_pano: Whether the image is a panorama.
-- creator: Name of the author; the id where there is no name.
-- licence: Licence of the image.
-- attribution: The credit that every product of the image must carry.
-- stratum: Name of the stratum polygon that the image lies in; null outside all.
-- dropped_by: The filter that keeps the image out of the files; null where it is selected.
-- file_status: State of the image's file: done, dead, missing, or dropped where a filter keeps it out and it is not there.
-- file_bytes: Size of the file [B].
-- test: not_null(image_id, file_status)
-- test: unique(city, box, image_id)
-- test: accepted_values(file_status, 'done', 'dead', 'missing', 'dropped')
-- test: accepted_range(lat, -90, 90)
-- test: accepted_range(lon, -180, 180)
-- test: accepted_range(file_bytes, 0, null)
select
    m.city,
    m.box,
    m.image_id,
    m.sequence_id,
    case when m.computed_lon is null or m.computed_lat is null then m.lon else m.computed_lon end as lon,
    case when m.computed_lon is null or m.computed_lat is null then m.lat else m.computed_lat end as lat,
    m.captured_at,
    m.is_pano,
    coalesce(m.creator_username, m.creator_id) as creator,
    m.licence,
    m.attribution,
    m.stratum,
    m.dropped_by,
    coalesce(f.status, case when m.dropped_by is null then 'missing' else 'dropped' end) as file_status,
    f.bytes as file_bytes
from image_metadata m
left join image_files f on f.city = m.city and f.box = m.box and f.image_id = m.image_id
where m.tombstoned_at is null
order by m.city, m.box, m.image_id
