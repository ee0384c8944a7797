-- Limits over the whole fleet: how many jobs run at once, and how many start within a period.
-- Owns:        new rows of limit_grants; procrastinate_jobs.pj_held_by of jobs that are turned away.
-- Lock order:  procrastinate_jobs (rows of this claim), limit_state by key, limit_grants.
-- The claim takes the state rows of the keys it meets, counts (limit_counts.sql), and takes no more than there is room for, in
-- one transaction: exact over any number of workers. A job that meets an exhausted limit leaves the claim's index until there
-- is room again (limit_waits.sql): it hides nobody.

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

