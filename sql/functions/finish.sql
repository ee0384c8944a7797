-- The finish: a worker reports jobs that succeeded.
-- Owns:        the step doing -> succeeded, and rows of job_history.
-- Lock order:  procrastinate_jobs (rows this worker runs), job_history, then the next jobs of freed locks.
-- Every path is fenced by (job, worker, lease). What does not match is left alone and not returned: the lease was lost,
-- somebody else runs or ended the job, and the caller's result is void.
-- A row that somebody's open transaction holds (a cancel not yet committed) fails the call after lock_timeout, so that the
-- worker can end the other jobs first.
-- `status is not distinct from 'doing'` keeps the planner on the primary key: the partial index of running jobs, which it
-- would take for `status = 'doing'`, holds a dead entry for every job the worker ever ran until vacuum comes by.

create or replace function procjobs.late_note(p_cancel jsonb)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_cancel ->> 'timeout' = 'true' then 'it ended after its timeout'
    else 'a cancel request came too late'
  end
$$;
comment on function procjobs.late_note(jsonb) is 'What is said of a job that succeeded although it was asked to stop.';

drop function if exists procjobs.finish_jobs(bigint, bigint[], integer[], text);
create or replace function procjobs.finish_jobs(
  p_worker bigint,
  p_ids bigint[],
  p_leases integer[],
  p_finished_jobs text default 'archive',
  p_results jsonb[] default null,
  p_notes text[] default null
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
  v_awaited bigint[];
begin
  if p_finished_jobs = 'archive' then
    with gone as (
      delete from public.procrastinate_jobs j
      using unnest(p_ids, p_leases, p_results, p_notes) as f(id, lease, result, note)
      where j.id = any (p_ids)
        and j.id = f.id
        and j.pj_lease = f.lease
        and j.worker_id = p_worker
        and j.status is not distinct from 'doing'
      returning j.*, f.result, f.note
    ),
    archived as (
      insert into procjobs.job_history (
        id, queue_name, task_name, priority, lock, queueing_lock, unique_key, args, tags, status, attempts, crashes,
        max_attempts, lease, worker_id, scheduled_at, created_at, started_at, finished_at, note, cancel, tenant,
        timeout, result, waiting_key, batch
      )
      select
        g.id, g.queue_name, g.task_name, g.priority, g.lock, g.queueing_lock, g.pj_unique_key, g.args, g.pj_tags,
        'succeeded', g.attempts + 1, g.pj_crashes, g.pj_max_attempts, g.pj_lease, g.worker_id, g.scheduled_at,
        g.pj_created_at, g.pj_started_at, v_now,
        case when g.abort_requested then concat_ws('; ', procjobs.late_note(g.pj_cancel), g.note) else g.note end, g.pj_cancel,
        g.pj_tenant, g.pj_timeout, g.result, g.pj_waiting_key, g.pj_batch
      from gone g
    )
    select array_agg(g.id), array_agg(g.lock) filter (where g.lock is not null), array_agg(g.id) filter (where g.pj_awaited)
    into v_ids, v_locks, v_awaited
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
      returning j.id, j.lock, j.pj_awaited
    )
    select array_agg(g.id), array_agg(g.lock) filter (where g.lock is not null), array_agg(g.id) filter (where g.pj_awaited)
    into v_ids, v_locks, v_awaited
    from gone g;
  elsif p_finished_jobs = 'keep' then
    with kept as (
      update public.procrastinate_jobs j
      set status = 'succeeded',
          attempts = j.attempts + 1,
          abort_requested = false,
          pj_finished_at = v_now,
          pj_result = f.result,
          pj_cancel = case
            when f.note is null then j.pj_cancel
            else coalesce(j.pj_cancel, '{}') || jsonb_build_object('note', f.note)
          end
      from unnest(p_ids, p_leases, p_results, p_notes) as f(id, lease, result, note)
      where j.id = any (p_ids)
        and j.id = f.id
        and j.pj_lease = f.lease
        and j.worker_id = p_worker
        and j.status is not distinct from 'doing'
      returning j.id, j.lock, j.pj_awaited
    )
    select array_agg(k.id), array_agg(k.lock) filter (where k.lock is not null), array_agg(k.id) filter (where k.pj_awaited)
    into v_ids, v_locks, v_awaited
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
  if v_awaited is not null then
    perform procjobs.announce_ends(v_awaited);
  end if;
  return query select unnest(v_ids);
end
$$;
comment on function procjobs.finish_jobs(bigint, bigint[], integer[], text, jsonb[], text[]) is
  'Ends runs that succeeded, many at once: archive moves them to the history, keep leaves them in the job table, delete forgets them. '
  'p_results: what they returned (null: nothing, for one or for all); p_notes: what is to be said of them. '
  'Returns the ids that were ended; an id that is missing had lost its lease. Definer: the worker role has no rights on tables.';

create or replace function procjobs.archive_jobs(p_ids bigint[], p_status public.procrastinate_job_status, p_note text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_count integer;
  v_locks text[];
  v_awaited bigint[];
begin
  for v_try in 1 .. 2 loop
    begin
      with gone as (
        delete from public.procrastinate_jobs j
        where j.id = any (p_ids)
        returning j.*
      ),
      archived as (
        insert into procjobs.job_history (
          id, queue_name, task_name, priority, lock, queueing_lock, unique_key, args, tags, status, attempts, crashes,
          max_attempts, lease, worker_id, scheduled_at, created_at, started_at, finished_at, note, cancel, tenant,
          timeout, result, waiting_key, batch
        )
        select
          g.id, g.queue_name, g.task_name, g.priority, g.lock, g.queueing_lock, g.pj_unique_key, g.args, g.pj_tags,
          coalesce(p_status, case when g.status = 'failed' then g.status else 'cancelled' end),
          g.attempts, g.pj_crashes, g.pj_max_attempts, g.pj_lease, g.worker_id, g.scheduled_at,
          g.pj_created_at, g.pj_started_at, procjobs.clock(), p_note, g.pj_cancel, g.pj_tenant,
          g.pj_timeout, g.pj_result, g.pj_waiting_key, g.pj_batch
        from gone g
      )
      select count(*), array_agg(distinct g.lock) filter (where g.lock is not null), array_agg(g.id) filter (where g.pj_awaited)
      into v_count, v_locks, v_awaited
      from gone g;
      exit;
    exception
      when check_violation then
        -- The partition of the day was attached while the row was on its way to the default one: it has a place now.
        if v_try = 2 then
          raise;
        end if;
    end;
  end loop;

  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  if v_awaited is not null then
    perform procjobs.announce_ends(v_awaited);
  end if;
  return v_count;
end
$$;
comment on function procjobs.archive_jobs(bigint[], public.procrastinate_job_status, text) is
  'Moves jobs to the history with this status (null: dead letters stay failed, others become cancelled) and the reason in words, '
  'and lets the next jobs of their locks go. Returns how many.';

create or replace function procjobs.archive_job(p_id bigint, p_status public.procrastinate_job_status, p_note text)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.archive_jobs(array[p_id], p_status, p_note) > 0
$$;
comment on function procjobs.archive_job(bigint, public.procrastinate_job_status, text) is
  'Moves one job to the history with this status and the reason in words, and lets the next job of its lock go.';
