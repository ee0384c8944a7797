-- Retention: forgetting jobs that ended long ago.
-- Owns:        deletes from job_history, and of finished jobs from procrastinate_jobs.
-- Lock order:  job_history, then procrastinate_jobs, skipping locked rows; at most p_max_rows of each in one transaction.

create or replace function procjobs.delete_old_jobs(
  p_hours integer,
  p_queue text,
  p_statuses text[],
  p_max_rows integer default 5000
)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := procjobs.clock() - make_interval(hours => p_hours);
  v_statuses public.procrastinate_job_status[] := p_statuses::public.procrastinate_job_status[];
  v_archived integer;
  v_kept integer;
begin
  -- Partitions of younger days are not even opened.
  delete from procjobs.job_history h
  using (
    select o.id, o.finished_at
    from procjobs.job_history o
    where o.finished_at < v_before
      and o.status = any (v_statuses)
      and (p_queue is null or o.queue_name = p_queue)
    limit p_max_rows
  ) old
  where h.id = old.id
    and h.finished_at = old.finished_at;
  get diagnostics v_archived = row_count;

  delete from public.procrastinate_jobs
  where id = any (array(
    select j.id
    from public.procrastinate_jobs j
    where j.status = any (v_statuses)
      and j.status not in ('todo', 'doing')
      and coalesce(
        j.pj_finished_at,
        (select max(e.at) from public.procrastinate_events e where e.job_id = j.id)
      ) < v_before
      and (p_queue is null or j.queue_name = p_queue)
    order by j.id
    limit p_max_rows
    for update skip locked
  ));
  get diagnostics v_kept = row_count;
  return v_archived + v_kept;
end
$$;
comment on function procjobs.delete_old_jobs(integer, text, text[], integer) is
  'Deletes jobs that ended in one of these states more than p_hours ago, at most p_max_rows a call from the history and as many from the job table; '
  'call it until it returns 0. Procrastinate''s remove_old_jobs does. Definer: the worker role has no rights on tables.';
