-- Whom to credit: one row an author and licence of the images whose files are in the lake.
-- creator: Name of the author; the id where there is no name.
-- licence: Licence of the images.
-- n_images: Images of the author under this licence.
-- n_sequences: Sequences that they belong to.
-- cities: Cities that they lie in, separated by commas.
-- first_at: Earliest capture time, UTC.
-- last_at: Latest capture time, UTC.
-- credit: The credit that every product of these images must carry.
-- check: n_images > 0
select
    creator,
    licence,
    count(*) as n_images,
    count(distinct sequence_id) as n_sequences,
    string_agg(distinct city, ', ' order by city) as cities,
    min(captured_at) as first_at,
    max(captured_at) as last_at,
    attribution as credit
from stg_images
where file_status = 'done'
group by creator, licence, attribution
order by n_images desc, creator, licence, credit
