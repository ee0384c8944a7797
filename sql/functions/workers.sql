-- Workers: registering, heartbeats, leaving.
-- Owns:        worker_state, and this worker's row of procrastinate_workers (upstream's tools read its heartbeat).
-- Lock order:  worker_state by id, procrastinate_workers, then procrastinate_jobs.

drop function if exists procjobs.register_worker(text, text, integer, text, text[], text[], integer, interval, interval);
create or replace function procjobs.register_worker(
  p_name text,
  p_host text,
  p_pid integer,
  p_version text,
  p_queues text[],
  p_tasks text[],
  p_concurrency integer,
  p_heartbeat_every interval,
  p_lease interval,
  p_runs_sql boolean default false
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_id bigint;
begin
  if p_lease < 2 * p_heartbeat_every then
    raise exception 'a lease of % is too short for a heartbeat every %', p_lease, p_heartbeat_every
      using errcode = 'PJ009',
            detail = format('the shortest lease for it is %s', 2 * p_heartbeat_every),
            hint = 'Make the lease three heartbeat intervals.';
  end if;

  insert into public.procrastinate_workers (last_heartbeat)
  values (v_now)
  returning id into v_id;

  insert into procjobs.worker_state (
    id, name, host, pid, version, queues, tasks, concurrency, heartbeat_every, lease, started_at, last_heartbeat,
    runs_sql, login, sql_tasks
  )
  values (
    v_id, p_name, p_host, p_pid, p_version, p_queues, p_tasks, p_concurrency, p_heartbeat_every, p_lease, v_now, v_now,
    p_runs_sql, session_user, case when p_runs_sql then procjobs.runnable_sql_tasks(session_user) end
  );
  return v_id;
end
$$;
comment on function procjobs.register_worker(text, text, integer, text, text[], text[], integer, interval, interval, boolean) is
  'Makes a worker known, with the queues it claims from (null: all) and the tasks it knows; p_runs_sql: SQL tasks too. Returns its id. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.heartbeat(p_worker bigint)
returns table (alive boolean, abort_ids bigint[])
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
begin
  update procjobs.worker_state
  set last_heartbeat = v_now,
      suspected_at = null,
      sql_tasks = case when runs_sql then procjobs.runnable_sql_tasks(session_user) end
  where id = p_worker
    and dead_at is null
    and stopped_at is null;
  alive := found;

  if alive then
    -- An upstream worker prunes rows after an outage; ours comes back.
    insert into public.procrastinate_workers as w (id, last_heartbeat)
    overriding system value
    values (p_worker, v_now)
    on conflict (id) do update set last_heartbeat = excluded.last_heartbeat;
    abort_ids := procjobs.abort_requests(p_worker);
  end if;
  return next;
end
$$;
comment on function procjobs.heartbeat(bigint) is
  'Renews the lease on everything this worker runs. alive is false when it was declared dead: its jobs are no longer its own. '
  'abort_ids: jobs it runs that somebody asked to cancel. Definer: the worker role has no rights on tables.';

create or replace function procjobs.abort_requests(p_worker bigint)
returns bigint[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select coalesce(array_agg(id order by id), '{}')
  from public.procrastinate_jobs
  where worker_id = p_worker
    and status = 'doing'
    and abort_requested
$$;
comment on function procjobs.abort_requests(bigint) is
  'Jobs of this worker that somebody asked to cancel; a NOTIFY is only a hint to look here. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.drain_worker(p_worker bigint)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.worker_state
  set draining_at = coalesce(draining_at, procjobs.clock())
  where id = p_worker
$$;
comment on function procjobs.drain_worker(bigint) is
  'Marks a worker that claims no more and finishes what it runs. Definer: the worker role has no rights on tables.';

create or replace function procjobs.stop_worker(p_worker bigint)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update procjobs.worker_state
  set stopped_at = coalesce(stopped_at, procjobs.clock())
  where id = p_worker
    and dead_at is null;
  delete from public.procrastinate_workers
  where id = p_worker;
end
$$;
comment on function procjobs.stop_worker(bigint) is
  'Marks a worker that has left. What it still ran is given to others by the next rescue, without counting a crash. '
  'Definer: the worker role has no rights on tables.';

drop function if exists procjobs.release_unknown(bigint, bigint[]);
create or replace function procjobs.release_unknown(p_worker bigint, p_known bigint[], p_leases integer[] default null)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_job public.procrastinate_jobs;
  v_count integer := 0;
begin
  for v_job in
    select j.*
    from public.procrastinate_jobs j
    where j.worker_id = p_worker
      and j.status = 'doing'
      -- The lease too: a job may come again, by a claim whose reply was lost, before the worker heard that its last
      -- run has ended.
      and not exists (
        select
        from unnest(p_known, p_leases) as k (id, lease)
        where k.id = j.id
          and coalesce(k.lease, j.pj_lease) = j.pj_lease
      )
    order by j.id
    for update
  loop
    perform procjobs.settle_job(v_job, '{"outcome": "released"}');
    if v_job.lock is not null then
      perform procjobs.promote_locks(array[v_job.lock]);
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.release_unknown(bigint, bigint[], integer[]) is
  'Gives back jobs that the database holds for this worker and the worker does not know of, by id and lease: the reply to their claim was lost. '
  'Returns how many. Definer: the worker role has no rights on tables.';
