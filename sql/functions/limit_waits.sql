-- Jobs that wait for a limit, and what lets them go: the end of another, or time.
-- Owns:        procrastinate_jobs.pj_held_by of jobs that are let go; the end of limit_grants, the rows of limit_ends.
-- Lock order:  procrastinate_jobs (skipping what others have locked), then the next jobs of freed locks.
-- Grants end in the transaction in which the job stops running, whoever stops it (triggers): there is nothing to leak.

create or replace function procjobs.promote_limits(p_keys text[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_nestloop = on
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_fair boolean := exists (select from procjobs.queue_settings s where s.fair);
  v_count integer;
  v_queues text[];
  v_locks text[];
begin
  with free as materialized (
    select r.key, r.room, case when v_fair then procjobs.held_in_turn(r.key, r.room) end as in_turn
    from procjobs.limit_room(p_keys, procjobs.clock()) r
    where r.room > 0
  ),
  head as (
    select held.id
    from free f
    cross join lateral (
      select j.id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'limit'
        and j.pj_held_by = f.key
      order by j.priority desc, j.id
      limit f.room
      for update skip locked
    ) held
    where f.in_turn is null
    union all
    select held.id
    from (
      select j.id
      from public.procrastinate_jobs j
      where j.id = any (array(select unnest(f.in_turn) from free f))
        and j.status is not distinct from 'todo'
        and j.pj_waits_for is not distinct from 'limit'
      for update skip locked
    ) held
  ),
  promoted as (
    update public.procrastinate_jobs
    set pj_waits_for = case when lock is not null then 'lock' end,
        pj_held_by = null
    where id = any (array(select h.id from head h order by h.id))
    returning queue_name, lock
  )
  select
    count(*),
    array_agg(distinct queue_name::text) filter (where lock is null),
    array_agg(distinct lock) filter (where lock is not null)
  into v_count, v_queues, v_locks
  from promoted;

  perform procjobs.wake_queues(v_queues);
  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  return v_count;
end
$$;
comment on function procjobs.promote_limits(text[]) is
  'Makes as many jobs claimable as there is room for under each of these keys, by priority and id, of fair queues in turn. Returns how many.';

create or replace function procjobs.held_keys()
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
  -- A loose index scan: one probe a key, however many jobs wait for it.
  with recursive held(key) as (
    (
      select j.pj_held_by
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'limit'
      order by j.pj_held_by
      limit 1
    )
    union all
    select (
      select j.pj_held_by
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'limit'
        and j.pj_held_by > held.key
      order by j.pj_held_by
      limit 1
    )
    from held
    where held.key is not null
  )
  select key from held where key is not null
$$;
comment on function procjobs.held_keys() is 'The keys of limits for which some job waits.';

create or replace function procjobs.sweep_limits()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_held text[] := array(select procjobs.held_keys());
  v_orphans text[];
begin
  -- A claim that was under way when a limit was set did not know of it: what it started counts from now on.
  perform procjobs.count_running(l.name)
  from procjobs.limits l
  where l.set_at > procjobs.clock() - interval '1 minute';
  if v_held = '{}' then
    return 0;
  end if;
  -- Jobs whose limit is gone wait for nothing.
  v_orphans := array(
    select h
    from unnest(v_held) h
    where not exists (
      select from procjobs.limit_state s join procjobs.limits l on l.name = s.limit_name where s.key = h
    )
  );
  if v_orphans <> '{}' then
    perform procjobs.unhold_jobs(v_orphans);
  end if;
  return procjobs.promote_limits(v_held);
end
$$;
comment on function procjobs.sweep_limits() is
  'Makes the jobs claimable for which their limit has room again: when a rate''s period has passed, or a race left them behind. '
  'Counts what a claim started that did not know of a new limit.';

create or replace function procjobs.unhold_jobs(p_keys text[], p_max_jobs integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_count integer;
  v_queues text[];
  v_locks text[];
begin
  with held as (
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_held_by = any (p_keys)
    limit p_max_jobs
    for update skip locked
  ),
  freed as (
    update public.procrastinate_jobs
    set pj_waits_for = case when lock is not null then 'lock' end,
        pj_held_by = null
    where id = any (array(select h.id from held h order by h.id))
    returning queue_name, lock
  )
  select
    count(*),
    array_agg(distinct queue_name::text) filter (where lock is null),
    array_agg(distinct lock) filter (where lock is not null)
  into v_count, v_queues, v_locks
  from freed;
  perform procjobs.wake_queues(v_queues);
  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  return v_count;
end
$$;
comment on function procjobs.unhold_jobs(text[], integer) is
  'Lets jobs be claimed that wait for these keys, whatever room there is: the claim judges them anew. At most p_max_jobs a call.';

create or replace function procjobs.limits_due_in()
returns double precision
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- Not resets_at: jobs were promoted into the room that there is, and no claim has counted them yet.
  select extract(epoch from min(r.more_at) - procjobs.clock())
  from procjobs.limit_room(array(select procjobs.held_keys()), procjobs.clock()) r
$$;
comment on function procjobs.limits_due_in() is 'Seconds until a rate has more room for the jobs that wait; null when none waits for a rate.';

create or replace function procjobs.release_grants(p_job_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_keys text[];
begin
  with gone as (
    delete from procjobs.limit_grants
    where job_id = any (p_job_ids)
    returning key
  ),
  noted as (
    insert into procjobs.limit_ends (key, at)
    select g.key, procjobs.wall_clock()
    from gone g
    where procjobs.limit_name_of(g.key) = any (array(select l.name from procjobs.limits l where l.rate_counts = 'runs'))
  )
  select array_agg(distinct key order by key) into v_keys
  from gone;
  if v_keys is not null and exists (
    select
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_held_by = any (v_keys)
  ) then
    perform procjobs.promote_limits(v_keys);
  end if;
end
$$;
comment on function procjobs.release_grants(bigint[]) is
  'These jobs no longer run: what they held of their limits goes to the next; under a rate that counts runs they still count for a while.';

create or replace function procjobs.release_job()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.release_grants(array[old.id]);
  return null;
end
$$;
comment on function procjobs.release_job() is
  'Trigger: a limited job stopped running but stays in the job table. Definer: whoever ends a job need no rights on the limits.';
