-- What each photo set contributes: photos and distinct coordinates by split, and the records that were not taken.
-- source: The photo set; geotag_combined for what only combining refused.
-- split: Train, validation or test; null for a source that contributes no photo.
-- n_photos: Photos.
-- n_coordinates: Distinct coordinates of them.
-- n_authors: Distinct authors of them, where known.
-- n_null_island: Photos of them at longitude and latitude zero.
-- n_rejects: Records of the source that were not taken, the same number in each of its splits.
-- test: unique(source, split)
-- test: not_null(source)
-- test: accepted_values(split, 'train', 'validation', 'test')
-- check: n_coordinates <= n_photos
with photos as (
    select
        source,
        split,
        count(*) as n_photos,
        count(distinct (lon, lat)) as n_coordinates,
        count(distinct author_hash) as n_authors,
        count(*) filter (where list_contains(flags, 'null_island')) as n_null_island
    from geotag_combined
    group by source, split
),
rejects as (
    select source, count(*) as n_rejects
    from geotag_rejects
    group by source
)
select
    coalesce(p.source, r.source) as source,
    p.split,
    coalesce(p.n_photos, 0) as n_photos,
    coalesce(p.n_coordinates, 0) as n_coordinates,
    coalesce(p.n_authors, 0) as n_authors,
    coalesce(p.n_null_island, 0) as n_null_island,
    coalesce(r.n_rejects, 0) as n_rejects
from photos p
full join rejects r on r.source = p.source
order by source, split
