-- What became of each box: images, pairs, the share that COLMAP registered, distance to GPS, and how good the splat is.
-- partition: city
-- city: The city.
-- box: The box.
-- n_images: Images harvested.
-- n_files: Files there.
-- n_pairs: Pairs of images chosen for matching.
-- n_verified: Pairs of them that were verified.
-- n_quarantined: Pairs kept out of mapping because they are impossible.
-- n_components: Components of the reconstruction.
-- n_registered: Images of the box that were registered.
-- registered_share: Images registered of those of the box that could take part, 0 to 1.
-- status: State of the largest component: placed, unplaced, or why there is no model.
-- route: How the largest component came about: rebuilt, updated or unchanged.
-- n_blocks: Blocks that the largest component was mapped in.
-- gps_median_m: Median distance of the cameras to their GPS positions in the largest component [m].
-- reprojection_px: Mean reprojection error of the largest component [px].
-- observations_per_image: Mean number of points that an image of the largest component observes.
-- roll_deg: Mean absolute roll of the cameras of the largest component [deg].
-- border_m: Largest of the median distances to neighbours on shared cameras, after the joint fit of the city [m].
-- focal_change: Largest relative change of a focal length against what was known, over placed components.
-- largest_gap_m: Longest way along a sequence past unregistered images, over placed components [m].
-- cpu_seconds: Processor time of mapping, all components together [s].
-- peak_mb: Peak memory of the largest process of mapping [MB].
-- psnr_db: PSNR of the held-out photos [dB].
-- sequence_psnr_db: The same after the gains of their sequences, learnt from the other photos [dB].
-- ssim: SSIM of the held-out photos.
-- gain_db: PSNR won over the state before training [dB].
-- state: Furthest state: empty, harvested, matched, reconstructed or splat.
-- test: unique(city, box)
-- test: accepted_range(registered_share, 0, 1)
-- test: accepted_range(ssim, -1, 1)
-- test: accepted_values(state, 'empty', 'harvested', 'matched', 'reconstructed', 'splat')
-- check: n_verified <= n_pairs
-- check: n_quarantined <= n_pairs
with pairs as (
    select
        city,
        box,
        count(*) as n_pairs,
        count(*) filter (where verified) as n_verified,
        count(quarantine) as n_quarantined
    from match_pairs
    group by city, box
),
borders as (
    select city, box, max(median_m) as border_m
    from (
        select city, box_a as box, median_m from border_disagreement where n_shared >= 3
        union all
        select city, box_b as box, median_m from border_disagreement where n_shared >= 3
    )
    group by city, box
),
models as (
    select
        city,
        box,
        count(*) filter (where n_registered > 0) as n_components,
        sum(n_home_registered) as n_registered,
        max(n_home_images) as n_home_images,
        arg_min_null(status, component) as status,
        arg_min_null(route, component) as route,
        arg_min_null(n_blocks, component) as n_blocks,
        arg_min_null(gps_median_m, component) as gps_median_m,
        arg_min_null(reprojection_px, component) as reprojection_px,
        arg_min_null(observations_per_image, component) as observations_per_image,
        arg_min_null(roll_deg, component) as roll_deg,
        max(border_m) filter (where status = 'placed') as border_m,
        max(focal_change) filter (where status = 'placed') as focal_change,
        max(largest_gap_m) filter (where status = 'placed') as largest_gap_m,
        sum(cpu_seconds) as cpu_seconds,
        max(peak_mb) as peak_mb
    from sparse_models
    group by city, box
)
select
    b.city,
    b.box,
    b.n_images,
    b.n_files,
    coalesce(p.n_pairs, 0) as n_pairs,
    coalesce(p.n_verified, 0) as n_verified,
    coalesce(p.n_quarantined, 0) as n_quarantined,
    coalesce(m.n_components, 0) as n_components,
    coalesce(m.n_registered, 0)::bigint as n_registered,
    -- An image may be in two components; it counts once.
    case when m.n_home_images > 0 then least(m.n_registered / m.n_home_images, 1.0) end as registered_share,
    m.status,
    m.route,
    m.n_blocks,
    m.gps_median_m,
    m.reprojection_px,
    m.observations_per_image,
    m.roll_deg,
    coalesce(j.border_m, m.border_m) as border_m,
    m.focal_change,
    m.largest_gap_m,
    m.cpu_seconds,
    m.peak_mb,
    s.psnr_db,
    s.sequence_psnr_db,
    s.ssim,
    s.psnr_db - s.init_psnr_db as gain_db,
    case
        when s.status = 'trained' then 'splat'
        when m.n_components > 0 then 'reconstructed'
        when p.n_verified > 0 then 'matched'
        when b.n_images > 0 then 'harvested'
        else 'empty'
    end as state
from stg_boxes b
left join borders j on j.city = b.city and j.box = b.box
left join pairs p on p.city = b.city and p.box = b.box
left join models m on m.city = b.city and m.box = b.box
left join splat_ply s on s.city = b.city and s.box = b.box
order by b.city, b.box
