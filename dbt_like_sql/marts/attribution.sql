-- Whom to credit in a city: one row an author and licence of the images whose files are in the lake.
-- partition: city
-- city: The city.
-- creator: Name of the author; the id where there is no name.
-- licence: Licence of the images.
-- n_images: Images of the author under this licence.
-- n_sequences: Sequences that they belong to.
-- n_boxes: Boxes that they lie in.
-- first_at: Earliest capture time, UTC.
-- last_at: Latest capture time, UTC.
-- credit: The credit that every product of these images must carry.
-- test: unique(city, creator, licence, credit)
-- test (warn): not_null(licence, credit)
-- check: n_images > 0
select
    city,
    creator,
    licence,
    count(*) as n_images,
    count(distinct sequence_id) as n_sequences,
    count(distinct box) as n_boxes,
    min(captured_at) as first_at,
    max(captured_at) as last_at,
    attribution as credit
from stg_images
where file_status = 'done'
group by city, creator, licence, attribution
order by city, n_images desc, creator, licence, credit
