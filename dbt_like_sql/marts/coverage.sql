-- How much of each box is in the lake: images that the coverage tiles count, images harvested and selected, files there.
-- partition: city
-- city: The city.
-- box: The box.
-- lon: Longitude of the box's middle [deg].
-- lat: Latitude of the box's middle [deg].
-- n_tile_images: Images in the box by the coverage tiles.
-- n_images: Images harvested; more than the tiles count where sequences and the audit found more.
-- n_selected: Images of them that the city's filters keep.
-- n_files: Files of the selected images that are there.
-- n_dead: Files of the selected images that the provider cannot deliver any more.
-- share: Files there of the files wanted, dead ones left out, 0 to 1; null where none is wanted.
-- complete: Whether the box's certificate leaves nothing unresolved; null where there is none.
-- test: unique(city, box)
-- test: relationship(city, box -> stg_boxes)
-- test: accepted_range(share, 0, 1)
select
    city,
    box,
    lon,
    lat,
    n_tile_images,
    n_images,
    n_selected,
    n_files,
    n_dead,
    -- Tiles still count what was deleted or lies elsewhere once corrected, so a complete harvest knows better than they do.
    n_files / nullif(
        n_selected - n_dead + case when complete then 0 else greatest(n_tile_images - n_images, 0) end, 0
    ) as share,
    complete
from stg_boxes
order by city, box
