-- Limits over the whole fleet: how many jobs run at once, and how many start within a period.
-- Owns:        limits, limit_state, limit_grants, limit_ends; procrastinate_jobs.pj_held_by of jobs that wait for a limit.
-- Lock order:  procrastinate_jobs (rows of this claim), limit_state by key, limit_grants.
-- The claim takes the state rows of the keys it meets, counts, and takes no more than there is room for, in one transaction:
-- exact over any number of workers. Grants end in the transaction in which the job stops running, whoever stops it
-- (triggers), so that there is nothing to leak. A job that meets an exhausted limit leaves the claim's index until there is
-- room again: it hides nobody.

create or replace function procjobs.limit_key(
  p_name text, p_key text, p_tenant text, p_lock text, p_args jsonb
)
returns text
language sql
immutable
parallel safe
as $$
  select p_name || case
    when p_key is null then ''
    when p_key = 'tenant' then ':' || case when octet_length(p_tenant) > 200 then md5(p_tenant) else p_tenant end
    when p_key = 'lock' then ':' || case when octet_length(p_lock) > 200 then md5(p_lock) else p_lock end
    when octet_length(p_args #>> (string_to_array(p_key, '.'))[2:]) > 200
      then ':' || md5(p_args #>> (string_to_array(p_key, '.'))[2:])
    else ':' || (p_args #>> (string_to_array(p_key, '.'))[2:])
  end
$$;
comment on function procjobs.limit_key(text, text, text, text, jsonb) is
  'What a job counts for under a limit: the limit''s name and the job''s value of its key. Null: the job has no such value, the limit is not for it. '
  'Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.limit_applies(p_limit procjobs.limits, p_task text, p_queue text, p_tags text[])
returns boolean
language sql
immutable
parallel safe
as $$
  select coalesce((p_limit).task = p_task, true)
    and coalesce((p_limit).queue = p_queue, true)
    and ((p_limit).tasks is null or p_task = any ((p_limit).tasks))
    and ((p_limit).tag is null or coalesce((p_limit).tag = any (p_tags), false))
$$;
comment on function procjobs.limit_applies(procjobs.limits, text, text, text[]) is
  'Whether a limit is for jobs of this task, queue and tags. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.limit_name_of(p_key text)
returns text
language sql
immutable
parallel safe
as $$
  select split_part(p_key, ':', 1)
$$;
comment on function procjobs.limit_name_of(text) is
  'The limit of a key that limit_key made; names of limits have no colon. Without a SET clause, so that the planner can inline it.';

drop function if exists procjobs.limit_room(text[], timestamptz);
create or replace function procjobs.limit_room(p_keys text[], p_now timestamptz)
returns table (key text, room integer, counted integer, resets_at timestamptz, more_at timestamptz)
language sql
stable
as $$
  select
    s.key,
    greatest(0, least(l.max_running - coalesce(running.n, 0), l.rate - recent.n, l.rate - lasting.n))::integer,
    coalesce(lasting.n, recent.n)::integer,
    greatest(
      case when recent.n >= l.rate then recent.first + l.per end,
      -- While none has ended yet: not before one that ends now has been over for so long.
      case when lasting.n >= l.rate then coalesce(lasting.first, p_now) + l.per end
    ),
    case when coalesce(running.n < l.max_running, true)
      then case when lasting.n is null then coalesce(recent.first, p_now) else coalesce(lasting.first, p_now) end + l.per end
  from procjobs.limit_state s
  join procjobs.limits l on l.name = s.limit_name
  left join (
    select g.key, count(*) as n from procjobs.limit_grants g where g.key = any (p_keys) group by g.key
  ) running on running.key = s.key
  left join lateral (
    select coalesce(sum(c.n), 0) as n, min(c.at) as first
    from unnest(s.starts, s.counts) as c(at, n)
    where c.at > p_now - l.per
  ) recent on l.rate is not null
  left join lateral (
    select coalesce(running.n, 0) + count(*) as n, min(e.at) as first
    from procjobs.limit_ends e
    where e.key = s.key
      and e.at > p_now - l.per
      and l.rate_counts = 'runs'
  ) lasting on l.rate is not null and l.rate_counts = 'runs'
  where s.key = any (p_keys)
$$;
comment on function procjobs.limit_room(text[], timestamptz) is
  'How many jobs more may start now under each of these keys; counted: what counts for its rate; resets_at: when the rate lets the next one go, if it is '
  'exhausted, at the earliest; more_at: when the rate has more room than it has now, likewise. A rate that counts runs counts starts too, for those that ended before it did. '
  'Exact only for whoever holds the rows of limit_state. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.note_starts(p_keys text[], p_counts integer[], p_now timestamptz)
returns void
language sql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
  -- Starts within a hundredth of the period become one entry, at the later time: the row stays small, the count never low.
  update procjobs.limit_state s
  set (starts, counts) = (
    select array_agg(b.at order by b.at), array_agg(b.n order by b.at)
    from (
      select max(e.at) as at, sum(e.n)::integer as n
      from (
        select c.at, c.n from unnest(s.starts, s.counts) as c(at, n)
        union all
        select p_now, t.n
      ) e
      where e.at > p_now - l.per
      group by floor(extract(epoch from e.at) * 100 / extract(epoch from l.per))
    ) b
  )
  from unnest(p_keys, p_counts) as t(key, n), procjobs.limits l
  where s.key = t.key
    and l.name = s.limit_name
    and l.rate is not null
$$;
comment on function procjobs.note_starts(text[], integer[], timestamptz) is 'Notes that so many jobs start now under each of these keys.';

create or replace function procjobs.take_limit_state(p_keys text[], p_names text[], p_wait boolean)
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_keys constant text[] := array(select distinct k from unnest(p_keys) k);
begin
  -- Before any row is locked: it may wait for somebody who inserts the same key and then locks.
  insert into procjobs.limit_state (key, limit_name)
  select distinct on (k.key) k.key, k.name
  from unnest(p_keys, p_names) as k(key, name)
  where not exists (select from procjobs.limit_state s where s.key = k.key)
  order by k.key
  on conflict do nothing;

  if p_wait then
    return array(
      select s.key from procjobs.limit_state s where s.key = any (v_keys) order by s.key for update
    );
  end if;
  return array(
    select s.key from procjobs.limit_state s where s.key = any (v_keys) order by s.key for update skip locked
  );
end
$$;
comment on function procjobs.take_limit_state(text[], text[], boolean) is
  'Locks the rows of these keys, made if need be, in the order of the keys; without p_wait those that nobody else holds. Returns the keys.';

drop function if exists procjobs.admit_jobs(bigint[], integer, boolean);
drop function if exists procjobs.turn_away(bigint[], text[]);
create or replace function procjobs.admit_jobs(p_ids bigint[], p_max_jobs integer, p_wait boolean)
returns table (admitted bigint[], granted bigint[], keys text[], turned_away bigint[], turned_by text[], counted text[], at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
set enable_nestloop = off
as $$
declare
  v_ids bigint[];
  v_keys text[];
  v_names text[];
  v_taken text[];
  v_limit text;
  v_has_rate boolean;
  v_has_grants boolean;
  v_rated boolean := false;
  v_counting text[];
  v_over bigint[];
  v_by text[];
  v_counts integer[];
begin
  admitted := p_ids;
  select array_agg(m.id), array_agg(m.key), array_agg(m.name)
  into v_ids, v_keys, v_names
  from (
    select j.id, l.name, procjobs.limit_key(l.name, l.key, j.pj_tenant, j.lock, j.args) as key
    from public.procrastinate_jobs j
    join procjobs.limits l on procjobs.limit_applies(l, j.task_name, j.queue_name, j.pj_tags)
    where j.id = any (p_ids)
    offset 0  -- or the key is made twice
  ) m
  where m.key is not null;
  if v_ids is null then
    admitted := admitted[1:p_max_jobs];
    at := procjobs.clock();
    return next;
    return;
  end if;

  v_taken := procjobs.take_limit_state(v_keys, v_names, p_wait);
  counted := v_taken;
  at := procjobs.wall_clock();
  -- One limit after the other: what one turns away does not count for the next.
  for v_limit, v_has_rate, v_has_grants in
    select l.name, l.rate is not null, l.max_running is not null or l.rate_counts = 'runs'
    from procjobs.limits l
    where l.name = any (array(select distinct n from unnest(v_names) n))
    order by l.name
  loop
    v_rated := v_rated or v_has_rate;
    -- Grants only of what was judged here: a limit that is set a moment later counts these jobs by itself (count_running), a breaker not at all.
    if v_has_grants then
      v_counting := v_counting || v_limit;
    end if;
    with room as materialized (
      select r.key, r.room from procjobs.limit_room(v_taken, at) r
    )
    select array_agg(r.id), array_agg(r.key)
    into v_over, v_by
    from (
      select m.id, m.key, row_number() over (partition by m.key order by a.n) as place
      from unnest(admitted) with ordinality as a(id, n)
      join unnest(v_ids, v_keys, v_names) as m(id, key, name) on m.id = a.id and m.name = v_limit
    ) r
    left join room on room.key = r.key
    where r.place > coalesce(room.room, 0);

    turned_away := turned_away || v_over;
    turned_by := turned_by || v_by;
    if v_over is not null then
      admitted := array(
        select a.id
        from unnest(admitted) with ordinality as a(id, n)
        where not exists (select from unnest(v_over) as o(id) where o.id = a.id)
        order by a.n
      );
    end if;
  end loop;
  admitted := admitted[1:p_max_jobs];

  with held as (
    insert into procjobs.limit_grants (key, job_id)
    select m.key, m.id
    from unnest(v_ids, v_keys, v_names) as m(id, key, name)
    join unnest(admitted) as a(id) on a.id = m.id
    where m.name = any (v_counting)
    returning job_id, key
  )
  select array_agg(h.job_id), array_agg(h.key)
  into granted, keys
  from held h;

  if v_rated then
    select array_agg(c.key), array_agg(c.n)
    into v_keys, v_counts
    from (
      select m.key, count(*)::integer as n
      from unnest(v_ids, v_keys) as m(id, key)
      join unnest(admitted) as a(id) on a.id = m.id
      group by m.key
    ) c;
    perform procjobs.note_starts(v_keys, v_counts, at);
  end if;
  return next;
end
$$;
comment on function procjobs.admit_jobs(bigint[], integer, boolean) is
  'Which of these jobs, locked by the caller and in this order, the limits let start now, at most p_max_jobs; and those turned away, with the key of the limit. '
  'Counts the starts, as of `at`, and makes the grants (granted, keys: which job of which key). Without p_wait the keys that another claim holds have no room here, '
  'whatever room they have: counted names those that were looked at.';

create or replace function procjobs.turn_away(p_ids bigint[], p_keys text[], p_counted text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_dropped record;
begin
  update public.procrastinate_jobs j
  set pj_waits_for = 'limit',
      pj_held_by = t.key
  from unnest(p_ids, p_keys) as t(id, key)
  join procjobs.limit_state s on s.key = t.key
  join procjobs.limits l on l.name = s.limit_name and (l.on_excess <> 'drop' or t.key <> all (p_counted))
  where j.id = t.id
    and j.id = any (p_ids);

  for v_dropped in
    select t.id, l.name
    from unnest(p_ids, p_keys) as t(id, key)
    join procjobs.limit_state s on s.key = t.key
    join procjobs.limits l on l.name = s.limit_name and l.on_excess = 'drop'
    where t.key = any (p_counted)
    order by t.id
  loop
    perform procjobs.archive_job(v_dropped.id, 'cancelled', format('dropped: limit %s was reached', v_dropped.name));
  end loop;
  perform procjobs.stop_oldest(array(select k from unnest(p_keys) k where k = any (p_counted)));
end
$$;
comment on function procjobs.turn_away(bigint[], text[], text[]) is
  'What becomes of jobs that met an exhausted limit: they wait for it, are dropped, or the oldest running ones are asked to make room. '
  'Those whose key was not counted, because another claim held it, wait in any case: there may be room.';

create or replace function procjobs.stop_oldest(p_keys text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  -- As many as wait; those that were asked already count.
  with excess as (
    select k.key, l.name, count(*) as n
    from unnest(p_keys) as k(key)
    join procjobs.limit_state s on s.key = k.key
    join procjobs.limits l on l.name = s.limit_name and l.on_excess = 'cancel_oldest'
    group by k.key, l.name
  ),
  oldest as (
    select o.id, e.name
    from excess e
    cross join lateral (
      select j.id, j.abort_requested
      from procjobs.limit_grants g
      join public.procrastinate_jobs j on j.id = g.job_id and j.status is not distinct from 'doing'
      where g.key = e.key
      order by j.abort_requested desc, j.pj_started_at, j.id
      limit e.n
    ) o
    where not o.abort_requested
  ),
  free as (
    select j.id from public.procrastinate_jobs j
    where j.id = any (array(select o.id from oldest o order by o.id))
    order by j.id
    for update skip locked
  )
  update public.procrastinate_jobs j
  set abort_requested = true,
      pj_cancel = jsonb_build_object(
        'by', 'limit ' || o.name, 'at', procjobs.clock(), 'reason', 'a newer job takes its place')
  from oldest o
  where j.id = o.id
    and j.id = any (array(select f.id from free f));
end
$$;
comment on function procjobs.stop_oldest(text[]) is
  'Asks the longest running jobs under these keys to stop, one for each time the key is named, where the limit says so.';

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
