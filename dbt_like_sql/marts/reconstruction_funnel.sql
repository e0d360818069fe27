-- How far the images of each box came: seen by the tiles, harvested, downloaded, featured, paired, registered, splatted.
-- partition: city
-- city: The city.
-- box: The box.
-- n_tile_images: Images in the box by the coverage tiles.
-- n_harvested: Images harvested that still exist; more than the tiles count where sequences and the audit found more.
-- n_downloaded: Images of them that the city's filters keep and whose files are there.
-- n_featured: Images harvested in which features were found; a panorama is one image, however many views it gives.
-- n_paired: Images harvested that are in a verified pair which is not kept out of mapping.
-- n_registered: Images harvested that have a camera in a model of the box.
-- n_splatted: Images harvested that the splat of the box was trained on or judged by.
-- state: Furthest state: empty, seen, harvested, downloaded, featured, paired, registered or splatted.
-- test: unique(city, box)
-- test: relationship(city, box -> stg_boxes)
-- test: accepted_values(state, 'empty', 'seen', 'harvested', 'downloaded', 'featured', 'paired', 'registered', 'splatted')
-- check: n_downloaded <= n_harvested
-- check: n_featured <= n_harvested
-- check: n_paired <= n_featured
-- check (warn): n_featured <= n_downloaded
-- check (warn): n_registered <= n_paired
-- check (warn): n_splatted <= n_registered
with views as (
    -- The database of a box holds its margin too; an image counts in its own box.
    select city, box, image_id, photo_id, n_keypoints > 0 as featured
    from gps_db
    where home_box = box
),
paired as (
    select city, box, image_id_a as image_id from match_pairs where verified and quarantine is null
    union
    select city, box, image_id_b as image_id from match_pairs where verified and quarantine is null
),
photos as (
    select
        v.city,
        v.box,
        v.photo_id,
        bool_or(v.featured) as featured,
        bool_or(v.featured and p.image_id is not null) as paired,
        bool_or(c.image_id is not null) as registered,
        bool_or(s.image_id is not null) as splatted
    from views v
    left join paired p on p.city = v.city and p.box = v.box and p.image_id = v.image_id
    left join model_cameras c on c.city = v.city and c.box = v.box and c.image_id = v.image_id
    left join splat_views s on s.city = v.city and s.box = v.box and s.image_id = v.image_id
    group by v.city, v.box, v.photo_id
),
counts as (
    select
        i.city,
        i.box,
        count(*) as n_harvested,
        count(*) filter (where i.file_status = 'done' and i.dropped_by is null) as n_downloaded,
        count(*) filter (where p.featured) as n_featured,
        count(*) filter (where p.paired) as n_paired,
        count(*) filter (where p.registered) as n_registered,
        count(*) filter (where p.splatted) as n_splatted
    from stg_images i
    left join photos p on p.city = i.city and p.box = i.box and p.photo_id = i.image_id
    group by i.city, i.box
)
select
    b.city,
    b.box,
    b.n_tile_images,
    coalesce(c.n_harvested, 0) as n_harvested,
    coalesce(c.n_downloaded, 0) as n_downloaded,
    coalesce(c.n_featured, 0) as n_featured,
    coalesce(c.n_paired, 0) as n_paired,
    coalesce(c.n_registered, 0) as n_registered,
    coalesce(c.n_splatted, 0) as n_splatted,
    case
        when c.n_splatted > 0 then 'splatted'
        when c.n_registered > 0 then 'registered'
        when c.n_paired > 0 then 'paired'
        when c.n_featured > 0 then 'featured'
        when c.n_downloaded > 0 then 'downloaded'
        when c.n_harvested > 0 then 'harvested'
        when b.n_tile_images > 0 then 'seen'
        else 'empty'
    end as state
from stg_boxes b
left join counts c on c.city = b.city and c.box = b.box
order by b.city, b.box
