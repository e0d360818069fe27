-- How much of each box is in the lake: images that the coverage tiles count, images harvested, files there.
-- city: The city.
-- box: The box.
-- lon: Longitude of the box's middle [deg].
-- lat: Latitude of the box's middle [deg].
-- n_tile_images: Images in the box by the coverage tiles.
-- n_images: Images harvested; more than the tiles count where sequences and the audit found more.
-- n_files: Files there.
-- n_dead: Files that the provider cannot deliver any more.
-- share: Files there, dead ones left out, of the images that are known, 0 to 1; null where none is known.
-- complete: Whether the box's certificate leaves nothing unresolved; null where there is none.
-- check: share between 0 and 1
select
    city,
    box,
    lon,
    lat,
    n_tile_images,
    n_images,
    n_files,
    n_dead,
    n_files / nullif(greatest(n_tile_images, n_images) - n_dead, 0) as share,
    complete
from stg_boxes
order by city, box
