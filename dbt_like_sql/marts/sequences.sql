-- One row a sequence of a city, over all boxes that it passes: its images, its files, how far it went and when.
-- city: The city.
-- sequence_id: Id of the sequence.
-- creator: Name of the author; the id where there is no name.
-- n_boxes: Boxes that hold an image of it.
-- n_images: Images of it in the city that still exist.
-- n_listed: Images of the whole sequence by the provider's list, inside the city or not; null where there is no list.
-- n_selected: Images of it that the city's filters keep.
-- n_files: Files of it that are there.
-- n_panoramas: Panoramas among its images.
-- length_m: Length of its lines in the boxes, without the steps from box to box [m]; null where it has no line.
-- started_at: Earliest capture time, UTC.
-- ended_at: Latest capture time, UTC.
-- check: n_selected <= n_images
-- check: length_m >= 0
with images as (
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
),
lines as (
    select city, sequence_id, sum(length_m) as length_m
    from sequence_lines
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
    i.started_at,
    i.ended_at
from images i
left join listed l on l.city = i.city and l.sequence_id = i.sequence_id
left join lines g on g.city = i.city and g.sequence_id = i.sequence_id
order by i.city, i.sequence_id
