-- What proves that each box is complete: what every source named, what each added, and what is left open.
-- partition: city
-- city: The city.
-- box: The box.
-- state: complete, incomplete, or unknown where the box has no certificate.
-- n_tile_images: Images named by the tiles.
-- n_closure_added: Images that only the lists of the tiles' sequences named.
-- n_audit_added: Images that only the audit brought.
-- n_failed_tiles: Tiles that could not be had.
-- n_unresolved: Ids that got neither metadata nor a tombstone.
-- n_unverifiable: Audit cells that the API would not answer however small.
-- n_unclosed: Sequences whose images the API would not list.
-- n_open: All of the four together: what must be zero in a complete box.
-- n_tombstones: Ids that the API says do not exist any more.
-- n_images: Images in the box in the end, by the certificate.
-- n_rows: Images of the box in the lake that still exist.
-- n_estimated_missing: Images that all sources may have missed, by capture and recapture; null where unknown.
-- share_audited: Images that the audit named as well, of all, 0 to 1; null where there is none.
-- asks_per_cell: Answers to each cell of the audit on average; null where it had no cell.
-- share_resolved: Ids with metadata or a tombstone of all ids named, 0 to 1; null where none was named.
-- dataset_hash: SHA-256 of the sorted image ids.
-- complete: Whether nothing is open; null where the box has no certificate.
-- fetched_at: When the box was harvested, UTC.
-- test: unique(city, box)
-- check: n_open = 0 or not complete
-- test: accepted_values(state, 'complete', 'incomplete', 'unknown')
-- test: accepted_range(share_audited, 0, 1)
-- test: accepted_range(share_resolved, 0, 1)
-- test: accepted_range(n_estimated_missing, 0, null)
-- check (warn): n_images = n_rows
select
    b.city,
    b.box,
    case when c.complete is null then 'unknown' when c.complete then 'complete' else 'incomplete' end as state,
    coalesce(c.n_tile_images, b.n_tile_images) as n_tile_images,
    coalesce(c.n_closure_added, 0) as n_closure_added,
    coalesce(c.n_audit_added, 0) as n_audit_added,
    coalesce(c.n_failed_tiles, 0) as n_failed_tiles,
    coalesce(c.n_unresolved, 0) as n_unresolved,
    coalesce(c.n_unverifiable, 0) as n_unverifiable,
    coalesce(c.n_unclosed, 0) as n_unclosed,
    coalesce(c.n_failed_tiles, 0) + coalesce(c.n_unresolved, 0) + coalesce(c.n_unverifiable, 0) + coalesce(c.n_unclosed, 0)
        as n_open,
    coalesce(c.n_tombstones, 0) as n_tombstones,
    c.n_images,
    b.n_images as n_rows,
    c.n_estimated_missing,
    -- The audit also names images beside the box, which do not count here.
    case when c.n_images > 0 then least((c.n_audit_again + c.n_audit_added) / c.n_images, 1.0) end as share_audited,
    c.n_audit_asks / nullif(c.n_audit_cells, 0) as asks_per_cell,
    (c.n_images + c.n_tombstones) / nullif(c.n_images + c.n_tombstones + c.n_unresolved, 0) as share_resolved,
    c.dataset_hash,
    c.complete,
    c.fetched_at
from stg_boxes b
left join certificates c on c.city = b.city and c.box = b.box
order by b.city, b.box
