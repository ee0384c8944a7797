-- What a waiting job waits for, and how it stops waiting.
-- Owns:        procrastinate_jobs.pj_waits_for of jobs that are 'todo'. Null means claimable, and only such jobs are in the
--              claim's index: a million jobs that cannot run cost the claim nothing.
-- Lock order:  procrastinate_jobs by id. Nothing here waits for a row that another transaction holds.
-- The hint in pj_waits_for is for speed. Right is what the unique index on the running lock enforces, and sweep_locks()
-- mends a hint that a race or a foreign worker left behind.

create or replace function procjobs.set_waiting()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
begin
  if new.status <> 'todo' then
    return new;
  end if;
  if octet_length(new.lock) > 2600 then
    -- Refused now: PostgreSQL could not index it later, when the job is to run.
    raise exception 'a lock has at most 2600 bytes'
      using errcode = 'PJ009',
            detail = format('it has %s', octet_length(new.lock)),
            hint = 'Use a hash of it: md5(...).';
  end if;

  new.pj_finished_at := null;
  if new.scheduled_at > procjobs.clock() then
    new.pj_waits_for := 'time';
  -- Ordered as the indexes of locks are, so that the plan goes by them and not through all that runs or is ready: a session
  -- keeps its plan, and may have made it when there were no jobs. A mere equality would leave nothing to order by.
  elsif new.lock is not null and (
    (
      select true
      from public.procrastinate_jobs o
      where o.lock >= new.lock
        and o.lock <= new.lock
        and o.status = 'doing'
        and o.id <> new.id
      order by o.lock
      limit 1
    )
    or (
      select true
      from public.procrastinate_jobs o
      where o.lock = new.lock
        and o.status = 'todo'
        and o.pj_waits_for is null
        and o.priority >= new.priority
        and o.id <> new.id
        and o.queue_name <> all ((select procjobs.paused_queues())::text[])
      order by o.priority desc, o.id
      limit 1
    )
  ) then
    new.pj_waits_for := 'lock';
  else
    new.pj_waits_for := null;
  end if;
  return new;
end
$$;
comment on function procjobs.set_waiting() is
  'Trigger: decides what a new or returning job waits for (time, lock or nothing). '
  'Definer: whoever may insert a job need not read the others.';

create or replace function procjobs.stamp_transition()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status = 'doing' and old.status <> 'doing' then
    new.pj_lease := old.pj_lease + 1;
    new.pj_started_at := procjobs.clock();
    new.pj_waits_for := null;
  elsif new.status not in ('todo', 'doing') and old.status in ('todo', 'doing') then
    new.pj_finished_at := procjobs.clock();
  end if;
  return new;
end
$$;
comment on function procjobs.stamp_transition() is
  'Trigger: keeps lease and times right when upstream''s own functions claim or end a job. '
  'Definer: upstream''s users need no rights on our columns.';

create or replace function procjobs.wake_queues(p_queues text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  if coalesce(cardinality(p_queues), 0) = 0 then
    return;
  end if;

  foreach v_queue in array p_queues loop
    -- A channel has at most 63 bytes; workers of longer names listen to the channel of all queues.
    if octet_length(v_queue) <= 40 then
      perform pg_notify('procrastinate_queue_v1#' || v_queue, '{"type": "job_inserted", "job_id": 0}');
    end if;
  end loop;
  perform pg_notify('procrastinate_any_queue_v1', '{"type": "job_inserted", "job_id": 0}');
end
$$;
comment on function procjobs.wake_queues(text[]) is
  'Tells idle workers of these queues to look: one NOTIFY a queue, and one for workers of all queues. A hint, nothing more.';

create or replace function procjobs.announce_jobs()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.wake_queues(array(
    select distinct i.queue_name::text
    from inserted i
    where i.status = 'todo'
      and i.pj_waits_for is null
  ));
  return null;
end
$$;
comment on function procjobs.announce_jobs() is
  'Trigger: wakes workers once a statement, whatever the number of jobs. Definer: pg_notify through our own function.';

create or replace function procjobs.announce_abort()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload text := json_build_object('type', 'abort_job_requested', 'job_id', new.id)::text;
begin
  if octet_length(new.queue_name) <= 40 then
    perform pg_notify('procrastinate_queue_v1#' || new.queue_name, v_payload);
  end if;
  perform pg_notify('procrastinate_any_queue_v1', v_payload);
  return null;
end
$$;
comment on function procjobs.announce_abort() is
  'Trigger: hints to the worker of a running job that somebody asked to stop it; the worker looks for itself. '
  'Definer: pg_notify through our own function.';

create or replace function procjobs.forget_jobs()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[] := array(select d.id from deleted d);
  v_limited bigint[] := array(select d.id from deleted d where d.pj_limits is not null and d.status = 'doing');
begin
  if v_limited <> '{}' then
    perform procjobs.release_grants(v_limited);
  end if;
  update public.procrastinate_periodic_defers
  set job_id = null
  where job_id = any(v_ids);

  delete from public.procrastinate_events
  where job_id = any(v_ids);
  return null;
end
$$;
comment on function procjobs.forget_jobs() is
  'Trigger: does once a statement what upstream''s foreign keys and row trigger did once a row. '
  'Definer: whoever may delete a job need no rights on upstream''s other tables.';

create or replace function procjobs.paused_queues()
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(name::text), '{}')
  from procjobs.queue_settings
  where paused_at is not null
$$;
comment on function procjobs.paused_queues() is 'Names of the queues from which nothing is claimed now.';

create or replace function procjobs.promote_locks(p_locks text[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_nestloop = on
set jit = off
as $$
declare
  v_paused text[] := procjobs.paused_queues();
  v_heads bigint[];
  v_queues text[];
  v_count integer;
begin
  -- Of each lock that nobody holds: the first of those held back, unless a claimable one precedes it.
  select array_agg(held.id order by held.id)
  into v_heads
  from (select distinct l as lock from unnest(p_locks) l where l is not null) freed
  cross join lateral (
    select h.id, h.priority
    from public.procrastinate_jobs h
    where h.lock = freed.lock
      and h.status = 'todo'
      and h.pj_waits_for = 'lock'
      and h.queue_name <> all (v_paused)
    order by h.priority desc, h.id
    limit 1
  ) held
  left join lateral (
    select r.id, r.priority
    from public.procrastinate_jobs r
    where r.lock = freed.lock
      and r.status = 'todo'
      and r.pj_waits_for is null
      and r.queue_name <> all (v_paused)
    order by r.priority desc, r.id
    limit 1
  ) ready on true
  where not exists (
      select
      from public.procrastinate_jobs d
      where d.lock = freed.lock
        and d.status = 'doing'
    )
    and (ready.id is null or (held.priority, -held.id) > (ready.priority, -ready.id));

  if v_heads is null then
    return 0;
  end if;

  -- A finish must not wait for whoever holds one of them, who may cancel it; if not, the sweep comes back to it.
  -- `is not distinct from` keeps the planner on the primary key: the index of held jobs may be long.
  with head as (
    select j.id
    from public.procrastinate_jobs j
    where j.id = any (v_heads)
      and j.status is not distinct from 'todo'
      and j.pj_waits_for is not distinct from 'lock'
    order by j.id
    for update skip locked
  ),
  promoted as (
    update public.procrastinate_jobs
    set pj_waits_for = null
    where id = any (array(select id from head))
    returning queue_name
  )
  select count(*), array_agg(distinct queue_name::text)
  into v_count, v_queues
  from promoted;

  perform procjobs.wake_queues(v_queues);
  return v_count;
end
$$;
comment on function procjobs.promote_locks(text[]) is
  'Makes the next job of each of these locks claimable, where nobody holds the lock. Returns how many.';

create or replace function procjobs.sweep_locks(p_max_locks integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_after text;
  v_locks text[];
begin
  select position into v_after
  from procjobs.upkeep_state
  where chore = 'sweep_position';

  -- A loose index scan: one probe a lock, however many jobs share it.
  with recursive held(lock, n) as (
    (
      select j.lock, 1
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'lock'
        and j.lock >= coalesce(v_after, '')
      order by j.lock
      limit 1
    )
    union all
    select
      (
        select j.lock
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for = 'lock'
          and j.lock > held.lock
        order by j.lock
        limit 1
      ),
      held.n + 1
    from held
    where held.lock is not null
      and held.n <= p_max_locks
  )
  select array_agg(lock) into v_locks
  from held
  where lock is not null;

  -- Seldom more than one slice. The row may be locked by somebody's open transaction: then this slice is done again.
  if v_after is not null or cardinality(v_locks) > p_max_locks then
    if not exists (select from procjobs.upkeep_state s where s.chore = 'sweep_position') then
      insert into procjobs.upkeep_state (chore, ran_at)
      values ('sweep_position', procjobs.clock())
      on conflict (chore) do nothing;
    end if;

    update procjobs.upkeep_state
    set ran_at = procjobs.clock(),
        position = case when cardinality(v_locks) > p_max_locks then v_locks[cardinality(v_locks)] end
    where chore in (
      select s.chore
      from procjobs.upkeep_state s
      where s.chore = 'sweep_position'
      for update skip locked
    );
  end if;
  return procjobs.promote_locks(v_locks[1:p_max_locks]);
end
$$;
comment on function procjobs.sweep_locks(integer) is
  'Mends locks whose next job was left waiting (a race, a worker of upstream''s, a resumed queue): promotes it. '
  'Works through at most p_max_locks locks a call and goes on there the next time. Returns how many it promoted.';

create or replace function procjobs.promote_due(p_max_jobs integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_count integer;
  v_queues text[];
  v_locks text[];
begin
  with due as (
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'time'
      and j.scheduled_at <= v_now
    order by j.scheduled_at
    limit p_max_jobs
    for update skip locked
  ),
  promoted as (
    update public.procrastinate_jobs
    set pj_waits_for = case when lock is not null then 'lock' end
    where id = any (array(select id from due order by id))
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
comment on function procjobs.promote_due(integer) is
  'Makes jobs whose time has come claimable, in batches, and wakes their workers. Returns how many.';
