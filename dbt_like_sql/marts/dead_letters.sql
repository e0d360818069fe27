-- One row a file that could not be had: which image, why, and how often it was asked for.
-- partition: city
-- city: The city.
-- box: The box.
-- image_id: Id of the image.
-- sequence_id: Sequence of the image.
-- creator: Name of the author; the id where there is no name.
-- size: Size that was asked for: 256, 1024, 2048 or original.
-- reason: Why the file is dead.
-- attempts: Times it was asked for.
-- tombstoned_at: When the API first said that the image does not exist any more, UTC; null while it does.
-- test: unique(city, box, image_id)
-- test: not_null(reason)
select
    f.city,
    f.box,
    f.image_id,
    m.sequence_id,
    coalesce(m.creator_username, m.creator_id) as creator,
    f.size,
    f.reason,
    f.attempts,
    m.tombstoned_at
from image_files f
left join image_metadata m on m.city = f.city and m.box = f.box and m.image_id = f.image_id
where f.status = 'dead'
order by f.city, f.box, f.image_id
