-- One row a box that was asked for: what the coverage tiles count in it and what was harvested.
-- partition: city
-- city: The city.
-- box: The box.
-- lon: Longitude of the box's middle [deg].
-- lat: Latitude of the box's middle [deg].
-- n_tile_images: Images in the box by the coverage tiles.
-- n_images: Images harvested that still exist.
-- n_selected: Images of them that the city's filters keep.
-- n_files: Files of the selected images that are there.
-- n_dead: Files of the selected images that the provider cannot deliver any more.
-- file_bytes: Size of all files of the box that are there [B].
-- complete: Whether the box's certificate leaves nothing unresolved; null where there is none.
-- test: unique(city, box)
-- check: n_files + n_dead <= n_selected
-- check: n_selected <= n_images
with images as (
    select
        city,
        box,
        count(*) as n_images,
        count(*) filter (where dropped_by is null) as n_selected,
        count(*) filter (where file_status = 'done' and dropped_by is null) as n_files,
        count(*) filter (where file_status = 'dead' and dropped_by is null) as n_dead,
        sum(file_bytes) filter (where file_status = 'done') as file_bytes
    from stg_images
    group by city, box
)
select
    b.city,
    b.box,
    (b.west + b.east) / 2 as lon,
    (b.south + b.north) / 2 as lat,
    b.n_images as n_tile_images,
    coalesce(i.n_images, 0) as n_images,
    coalesce(i.n_selected, 0) as n_selected,
    coalesce(i.n_files, 0) as n_files,
    coalesce(i.n_dead, 0) as n_dead,
    coalesce(i.file_bytes, 0)::bigint as file_bytes,
    c.complete
from bbox_partitions b
left join images i on i.city = b.city and i.box = b.box
left join certificates c on c.city = b.city and c.box = b.box
order by b.city, b.box
