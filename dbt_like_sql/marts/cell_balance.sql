-- How evenly the levels of cells share the photos, and how wide the cells are.
-- level: Level, 0 is the finest.
-- n_cells: Cells of the level.
-- n_photos: Photos in them.
-- n_points: Distinct coordinates in them.
-- median_photos: Median of the photos in a cell.
-- largest_photos: Photos in the largest cell.
-- median_mean_km: Median over the cells of the mean distance to the cell's centroid [km].
-- photo_mean_km: Mean distance of a photo to the centroid of its cell [km].
-- gini: Gini coefficient of photos over cells: 0 where all cells have as many, near 1 where one has nearly all.
-- test: unique(level)
-- test: accepted_range(gini, 0, 1)
-- test: accepted_range(n_cells, 1, null)
with ranked as (
    select
        level,
        n_photos,
        n_points,
        mean_km,
        row_number() over (partition by level order by n_photos, cell_id) as place
    from hierarchy_centroids
)
select
    level,
    count(*) as n_cells,
    sum(n_photos)::bigint as n_photos,
    sum(n_points)::bigint as n_points,
    median(n_photos) as median_photos,
    max(n_photos) as largest_photos,
    median(mean_km) as median_mean_km,
    sum(n_photos * mean_km) / sum(n_photos) as photo_mean_km,
    -- Sums of whole numbers stay exact, so that equal cells give zero and nothing below it.
    sum(n_photos * (2 * place - 1)) / (count(*) * sum(n_photos)) - 1 as gini
from ranked
group by level
order by level
