-- The finish: a worker reports jobs that succeeded.
-- Owns:        the step doing -> succeeded, and rows of job_history.
-- Lock order:  procrastinate_jobs (rows this worker runs), job_history, then the next jobs of freed locks.
-- Every path is fenced by (job, worker, lease). What does not match is left alone and not returned: the lease was lost,
-- somebody else runs or ended the job, and the caller's result is void.
-- A row that somebody's open transaction holds (a cancel not yet committed) fails the call after lock_timeout, so that the
-- worker can end the other jobs first.
-- `status is not distinct from 'doing'` keeps the planner on the primary key: the partial index of running jobs, which it
-- would take for `status = 'doing'`, holds a dead entry for every job the worker ever ran until vacuum comes by.

create or replace function procjobs.finish_jobs(
  p_worker bigint,
  p_ids bigint[],
  p_leases integer[],
  p_finished_jobs text default 'archive'
)
returns setof bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_ids bigint[];
  v_locks text[];
begin
  if p_finished_jobs = 'archive' then
    with gone as (
      delete from public.procrastinate_jobs j
      using unnest(p_ids, p_leases) as f(id, lease)
      where j.id = any (p_ids)
        and j.id = f.id
        and j.pj_lease = f.lease
        and j.worker_id = p_worker
        and j.status is not distinct from 'doing'
      returning j.*
    ),
    archived as (
      insert into procjobs.job_history (
        id, queue_name, task_name, priority, lock, queueing_lock, unique_key, args, tags, status, attempts, crashes,
        max_attempts, lease, worker_id, scheduled_at, created_at, started_at, finished_at, note, cancel
      )
      select
        g.id, g.queue_name, g.task_name, g.priority, g.lock, g.queueing_lock, g.pj_unique_key, g.args, g.pj_tags,
        'succeeded', g.attempts + 1, g.pj_crashes, g.pj_max_attempts, g.pj_lease, g.worker_id, g.scheduled_at,
        g.pj_created_at, g.pj_started_at, v_now,
        case when g.abort_requested then 'a cancel request came too late' end, g.pj_cancel
      from gone g
    )
    select array_agg(g.id), array_agg(g.lock) filter (where g.lock is not null)
    into v_ids, v_locks
    from gone g;
  elsif p_finished_jobs = 'delete' then
    with gone as (
      delete from public.procrastinate_jobs j
      using unnest(p_ids, p_leases) as f(id, lease)
      where j.id = any (p_ids)
        and j.id = f.id
        and j.pj_lease = f.lease
        and j.worker_id = p_worker
        and j.status is not distinct from 'doing'
      returning j.id, j.lock
    )
    select array_agg(g.id), array_agg(g.lock) filter (where g.lock is not null)
    into v_ids, v_locks
    from gone g;
  elsif p_finished_jobs = 'keep' then
    with kept as (
      update public.procrastinate_jobs j
      set status = 'succeeded',
          attempts = j.attempts + 1,
          abort_requested = false,
          pj_finished_at = v_now
      from unnest(p_ids, p_leases) as f(id, lease)
      where j.id = any (p_ids)
        and j.id = f.id
        and j.pj_lease = f.lease
        and j.worker_id = p_worker
        and j.status is not distinct from 'doing'
      returning j.id, j.lock
    )
    select array_agg(k.id), array_agg(k.lock) filter (where k.lock is not null)
    into v_ids, v_locks
    from kept k;
  else
    raise exception 'finished jobs cannot be treated as %', quote_nullable(p_finished_jobs)
      using errcode = 'PJ009',
            detail = format('asked of %s jobs, none of which was ended', cardinality(p_ids)),
            hint = 'One of archive, keep, delete.';
  end if;

  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  return query select unnest(v_ids);
end
$$;
comment on function procjobs.finish_jobs(bigint, bigint[], integer[], text) is
  'Ends runs that succeeded, many at once: archive moves them to the history, keep leaves them in the job table, delete forgets them. '
  'Returns the ids that were ended; an id that is missing had lost its lease. Definer: the worker role has no rights on tables.';

create or replace function procjobs.archive_job(p_id bigint, p_status public.procrastinate_job_status, p_note text)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock text;
begin
  with gone as (
    delete from public.procrastinate_jobs j
    where j.id = p_id
    returning j.*
  )
  insert into procjobs.job_history (
    id, queue_name, task_name, priority, lock, queueing_lock, unique_key, args, tags, status, attempts, crashes,
    max_attempts, lease, worker_id, scheduled_at, created_at, started_at, finished_at, note, cancel
  )
  select
    g.id, g.queue_name, g.task_name, g.priority, g.lock, g.queueing_lock, g.pj_unique_key, g.args, g.pj_tags,
    p_status, g.attempts, g.pj_crashes, g.pj_max_attempts, g.pj_lease, g.worker_id, g.scheduled_at,
    g.pj_created_at, g.pj_started_at, procjobs.clock(), p_note, g.pj_cancel
  from gone g
  returning lock into v_lock;

  if not found then
    return false;
  end if;
  if v_lock is not null then
    perform procjobs.promote_locks(array[v_lock]);
  end if;
  return true;
end
$$;
comment on function procjobs.archive_job(bigint, public.procrastinate_job_status, text) is
  'Moves one job to the history with this status and the reason in words, and lets the next job of its lock go.';
