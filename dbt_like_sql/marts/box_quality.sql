-- What became of each box: images, pairs, the share that COLMAP registered, distance to GPS, and how good the splat is.
-- city: The city.
-- box: The box.
-- n_images: Images harvested.
-- n_files: Files there.
-- n_pairs: Pairs of images chosen for matching.
-- n_verified: Pairs of them that were verified.
-- n_components: Components of the reconstruction.
-- n_registered: Images of the box that were registered.
-- registered_share: Images registered of those of the box that could take part, 0 to 1.
-- gps_median_m: Median distance of the cameras to their GPS positions in the largest component [m].
-- reprojection_px: Mean reprojection error of the largest component [px].
-- psnr_db: PSNR of the held-out photos [dB].
-- ssim: SSIM of the held-out photos.
-- gain_db: PSNR won over the state before training [dB].
-- state: Furthest state: empty, harvested, matched, reconstructed or splat.
-- check: registered_share between 0 and 1
-- check: n_verified <= n_pairs
with pairs as (
    select city, box, count(*) as n_pairs, count(*) filter (where verified) as n_verified
    from match_pairs
    group by city, box
),
models as (
    select
        city,
        box,
        count(*) filter (where n_registered > 0) as n_components,
        sum(n_home_registered) as n_registered,
        max(n_home_images) as n_home_images,
        min_by(gps_median_m, component) as gps_median_m,
        min_by(reprojection_px, component) as reprojection_px
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
    coalesce(m.n_components, 0) as n_components,
    coalesce(m.n_registered, 0)::bigint as n_registered,
    -- An image may be in two components; it counts once.
    least(m.n_registered / nullif(m.n_home_images, 0), 1.0) as registered_share,
    m.gps_median_m,
    m.reprojection_px,
    s.psnr_db,
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
left join pairs p on p.city = b.city and p.box = b.box
left join models m on m.city = b.city and m.box = b.box
left join splat_ply s on s.city = b.city and s.box = b.box
order by b.city, b.box
