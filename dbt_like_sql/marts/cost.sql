-- What each asset cost in each box, by Dagster's own records: time, bytes, requests, and runs that failed.
-- city: The city; null for what is made of no city.
-- box: The box; null for what is made of a whole city or of none.
-- asset: The asset, or the check that ran as a step of its own.
-- n_runs: Runs in which it was made or tried.
-- n_failed: Runs of them in which it failed in the end.
-- n_retried: Attempts that failed and were tried again.
-- seconds: Time that all attempts took [s].
-- failed_seconds: Time of them that attempts took which failed [s].
-- last_seconds: Time of the last attempt that succeeded [s]; null where none did.
-- bytes: Size of what the runs wrote, together [B]; null where the asset does not say.
-- requests: Requests to the imagery API, together; null where the asset makes none.
-- n_images: Images of the last attempt that succeeded; null where the asset does not say.
-- first_at: Start of the first attempt, UTC.
-- last_at: End of the last attempt, UTC.
-- test: unique(city, box, asset)
-- test: not_null(asset, seconds)
-- test: accepted_range(seconds, 0, null)
-- check: n_failed <= n_runs
-- check: box is null or city is not null
with attempts as (
    select
        *,
        row_number() over (partition by run_id, step order by attempt desc) = 1 as is_last
    from run_records
)
select
    city,
    box,
    asset,
    count(distinct run_id) as n_runs,
    count(distinct run_id) filter (where is_last and status = 'failed') as n_failed,
    count(*) filter (where not is_last) as n_retried,
    sum(seconds) as seconds,
    coalesce(sum(seconds) filter (where status = 'failed'), 0) as failed_seconds,
    arg_max(seconds, ended_at) filter (where status = 'done') as last_seconds,
    sum(bytes)::bigint as bytes,
    sum(requests)::bigint as requests,
    arg_max(n_images, ended_at) filter (where status = 'done') as n_images,
    min(started_at) as first_at,
    max(ended_at) as last_at
from attempts
group by city, box, asset
order by city nulls last, box nulls last, asset
