-- Queues whose next job is not simply the first by priority: tenants take turns, or waiting raises the priority.
-- Owns:        queue_settings.fair, last_tenant, ageing, and the places nobody_* and look_*.
-- Lock order:  queue_settings, skipping a row that another claim holds.
-- What is chosen here is only looked at; the claim locks it and judges it like any other.

create or replace function procjobs.choose_jobs(p_special text[], p_queues text[], p_max_jobs integer)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue record;
  v_chosen bigint[] := '{}'::bigint[];
begin
  for v_queue in
    select s.queue, s.share, q.fair, q.ageing
    from procjobs.claim_shares(p_queues, p_max_jobs) s
    join procjobs.queue_settings q on q.name = s.queue
    where s.queue = any (p_special)
  loop
    v_chosen := v_chosen || case
      when v_queue.fair then procjobs.choose_in_turn(v_queue.queue, v_queue.share)
      else procjobs.choose_by_age(v_queue.queue, v_queue.share, v_queue.ageing)
    end;
  end loop;
  return v_chosen;
end
$$;
comment on function procjobs.choose_jobs(text[], text[], integer) is
  'The next jobs of the special queues among p_queues, as many as their share of a claim of p_max_jobs, in order.';

create or replace function procjobs.tenants_in_turn(p_queue text, p_after text, p_max_tenants integer)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
  -- A loose index scan from p_after on: one probe a tenant, however many jobs each has.
  with recursive turn(tenant, n) as (
    (
      select j.pj_tenant, 1
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.pj_tenant is not null
        and j.queue_name = p_queue
        and j.pj_tenant > p_after
      order by j.pj_tenant
      limit 1
    )
    union all
    select
      (
        select j.pj_tenant
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for is null
          and j.pj_tenant is not null
          and j.queue_name = p_queue
          and j.pj_tenant > turn.tenant
        order by j.pj_tenant
        limit 1
      ),
      turn.n + 1
    from turn
    where turn.tenant is not null
      and turn.n < p_max_tenants
  )
  select coalesce(array_agg(tenant order by n), '{}')
  from turn
  where tenant is not null
$$;
comment on function procjobs.tenants_in_turn(text, text, integer) is
  'The next tenants after one, in the order of their names, that have a claimable job in a queue.';

create or replace function procjobs.ready_from(p_queue text, p_priority integer, p_id bigint, p_max_jobs integer)
returns table (id bigint, priority integer, tenant text)
language plpgsql
stable
rows 1000
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
-- What counts is how many rows are passed: the primary key, whose rows lie side by side, passes those of all other queues.
set seq_page_cost = 0
set random_page_cost = 0
as $$
begin
  -- The rest of that priority, then the lower ones: of each a range of the index. One condition for both would pass all before them.
  return query
  select u.id, u.priority, u.tenant
  from (
    (
      select j.id, j.priority, j.pj_tenant as tenant
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = p_queue
        and j.priority = p_priority
        and j.id >= p_id
      order by j.id
      limit p_max_jobs
    )
    union all
    (
      select j.id, j.priority, j.pj_tenant
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = p_queue
        and j.priority < p_priority
      order by j.priority desc, j.id
      limit p_max_jobs
    )
  ) u
  order by u.priority desc, u.id
  limit p_max_jobs;
end
$$;
comment on function procjobs.ready_from(text, integer, bigint, integer) is
  'The claimable jobs of a queue from a place on, by priority and id, with their tenants.';

create or replace function procjobs.look_for_nobody(
  p_queue text, p_priority integer, p_id bigint, p_window integer,
  out ids bigint[], out priorities integer[], out next_priority integer, out next_id bigint
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    array_agg(r.id order by r.priority desc, r.id) filter (where r.tenant is null),
    array_agg(r.priority order by r.priority desc, r.id) filter (where r.tenant is null),
    case when count(*) = p_window then min(r.priority) end,
    case when count(*) = p_window then (array_agg(r.id order by r.priority, r.id desc))[1] + 1 end
  from procjobs.ready_from(p_queue, coalesce(p_priority, 2147483647), coalesce(p_id, 0), p_window) r
$$;
comment on function procjobs.look_for_nobody(text, integer, bigint, integer) is
  'The jobs without a tenant among the next p_window of a queue from a place on (null: the front), and the place after them; null: there is no more.';

create or replace function procjobs.jobs_of_nobody(p_queue text, p_max_jobs integer, p_window integer default 1000)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_at procjobs.queue_settings;
  v_own record;
  v_new record;
  v_found record;
begin
  select s.* into v_at from procjobs.queue_settings s where s.name = p_queue;
  -- No index has them apart: a claim looks from where they were met last, or goes on looking where the last one ended. A second
  -- look goes through what stands before that place, again and again: they may have come there since.
  select l.* into v_own from procjobs.look_for_nobody(p_queue, v_at.nobody_priority, v_at.nobody_id, p_window) l;
  select l.* into v_new
  from procjobs.look_for_nobody(p_queue, v_at.look_priority, v_at.look_id, p_window) l
  where v_at.nobody_id is not null;

  select array_agg(f.id order by f.priority desc, f.id) as ids, (array_agg(f.priority order by f.priority desc, f.id))[1] as priority
  into v_found
  from (
    select * from unnest(v_own.ids, v_own.priorities) as own(id, priority)
    union
    select * from unnest(v_new.ids, v_new.priorities) as new(id, priority)
    order by 2 desc, 1
    limit p_max_jobs
  ) f;

  if v_found.ids is not null then
    v_at.nobody_priority := v_found.priority;
    v_at.nobody_id := v_found.ids[1];
  else
    v_at.nobody_priority := v_own.next_priority;
    v_at.nobody_id := v_own.next_id;
  end if;
  -- It begins again at the front where it found one, or has come to the place.
  if v_new.ids is not null or v_new.next_priority < v_at.nobody_priority
    or v_new.next_priority = v_at.nobody_priority and v_new.next_id >= v_at.nobody_id or v_at.nobody_id is null
  then
    v_new.next_priority := null;
    v_new.next_id := null;
  end if;

  update procjobs.queue_settings s
  set nobody_priority = v_at.nobody_priority, nobody_id = v_at.nobody_id, look_priority = v_new.next_priority, look_id = v_new.next_id
  where s.name in (select q.name from procjobs.queue_settings q where q.name = p_queue for update skip locked)
    and (s.nobody_priority, s.nobody_id, s.look_priority, s.look_id)
      is distinct from (v_at.nobody_priority, v_at.nobody_id, v_new.next_priority, v_new.next_id);
  return coalesce(v_found.ids, '{}');
end
$$;
comment on function procjobs.jobs_of_nobody(text, integer, integer) is
  'The next jobs without a tenant of a fair queue. However many with tenants stand before them, a claim reads at most twice p_window, and the next one goes on from there.';

create or replace function procjobs.choose_in_turn(p_queue text, p_max_jobs integer)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_last text;
  v_tenants text[];
  v_ids bigint[];
  v_next text;
begin
  select s.last_tenant into v_last
  from procjobs.queue_settings s
  where s.name = p_queue
  for update skip locked;

  -- Jobs of nobody are those of one tenant more, named '', who comes after all others.
  v_tenants := procjobs.tenants_in_turn(p_queue, coalesce(v_last, ''), p_max_jobs) || ''::text;
  if cardinality(v_tenants) <= p_max_jobs and v_last is not null then
    v_tenants := v_tenants || array(
      select t from unnest(procjobs.tenants_in_turn(p_queue, '', p_max_jobs)) with ordinality as again(t, n)
      where t <= v_last
      order by n
    );
  end if;

  with line as (
    select own.id, own.place, t.n, t.tenant
    from unnest(v_tenants) with ordinality as t(tenant, n)
    cross join lateral (
      select j.id, row_number() over (order by j.priority desc, j.id) as place
      from (
        select i.id, i.priority
        from public.procrastinate_jobs i
        where i.status = 'todo'
          and i.pj_waits_for is null
          and i.pj_tenant is not null
          and i.queue_name = p_queue
          and i.pj_tenant = t.tenant
        order by i.priority desc, i.id
        limit greatest(1, least(p_max_jobs, 20000 / cardinality(v_tenants)))
      ) j
    ) own
    union all
    select free.id, free.place, array_position(v_tenants, ''), ''
    from unnest(procjobs.jobs_of_nobody(p_queue, p_max_jobs)) with ordinality as free(id, place)
    order by 2, 3
    limit p_max_jobs
  )
  select array_agg(l.id order by l.place, l.n), (array_agg(l.tenant order by l.place desc, l.n desc))[1]
  into v_ids, v_next
  from line l;

  update procjobs.queue_settings
  set last_tenant = v_next
  where name in (select s.name from procjobs.queue_settings s where s.name = p_queue for update skip locked)
    and v_next is not null;
  return coalesce(v_ids, '{}');
end
$$;
comment on function procjobs.choose_in_turn(text, integer) is
  'The next jobs of a fair queue: one of each tenant in turn, within a tenant by priority and id; the next claim goes on where this one ended.';

create or replace function procjobs.held_tenants(p_key text, p_queue text, p_after text, p_max_tenants integer)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_found text[] := '{}'::text[];
  v_at text := p_after;
  v_round integer := 1;
begin
  -- A loose index scan: one probe a tenant, from p_after on, and then from the first.
  while cardinality(v_found) < p_max_tenants loop
    select j.pj_tenant
    into v_at
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_tenant is not null
      and j.pj_held_by = p_key
      and j.queue_name = p_queue
      and j.pj_tenant > v_at
    order by j.pj_tenant
    limit 1;
    if found and (v_round = 1 or v_at <= p_after) then
      v_found := v_found || v_at;
    elsif v_round = 1 then
      v_round := 2;
      v_at := '';
    else
      exit;
    end if;
  end loop;
  return v_found;
end
$$;
comment on function procjobs.held_tenants(text, text, text, integer) is
  'The next tenants after one, in the order of their names and round, that have a job in a queue that waits for this key of a limit.';

create or replace function procjobs.held_in_turn(p_key text, p_max_jobs integer)
returns bigint[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_most constant integer := least(p_max_jobs, 10000);
  v_fair constant text[] := array(
    select s.name::text
    from procjobs.queue_settings s
    where s.fair
      and exists (
        select
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for = 'limit'
          and j.pj_tenant is not null
          and j.pj_held_by = p_key
          and j.queue_name = s.name
      )
  );
begin
  if v_fair = '{}' then
    return null;
  end if;
  return array(
    select line.id
    from (
      select own.id, own.place, t.n
      from procjobs.queue_settings s
      cross join lateral unnest(procjobs.held_tenants(p_key, s.name, coalesce(s.last_tenant, ''), v_most)) with ordinality as t(tenant, n)
      cross join lateral (
        select j.id, row_number() over (order by j.priority desc, j.id) as place
        from (
          select i.id, i.priority
          from public.procrastinate_jobs i
          where i.status = 'todo'
            and i.pj_waits_for = 'limit'
            and i.pj_tenant is not null
            and i.pj_held_by = p_key
            and i.queue_name = s.name
            and i.pj_tenant = t.tenant
          order by i.priority desc, i.id
          limit v_most
        ) j
      ) own
      where s.name = any (v_fair)
      union all
      -- Those of nobody are one tenant more, as far as they are among the first; so are those of other queues under this key.
      select o.id, row_number() over (partition by o.queue_name order by o.priority desc, o.id), 0
      from (
        select j.id, j.priority, j.queue_name, j.pj_tenant
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for = 'limit'
          and j.pj_held_by = p_key
        order by j.priority desc, j.id
        limit greatest(1000, v_most)
      ) o
      where o.pj_tenant is null
         or o.queue_name <> all (v_fair)
    ) line
    order by line.place, line.n, line.id
    limit v_most
  );
end
$$;
comment on function procjobs.held_in_turn(text, integer) is
  'Which of the jobs that wait for a key of a limit go next where some are in a fair queue: one of each tenant in turn, after the tenant who came '
  'last. Null: none is in such a queue.';

create or replace function procjobs.choose_by_age(p_queue text, p_max_jobs integer, p_ageing interval)
returns bigint[]
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
  -- The levels of priority by a loose index scan; of each those that wait longest.
  with recursive level(priority) as (
    (
      select j.priority
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = p_queue
      order by j.priority desc
      limit 1
    )
    union all
    select (
      select j.priority
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = p_queue
        and j.priority < level.priority
      order by j.priority desc
      limit 1
    )
    from level
    where level.priority is not null
  ),
  line as (
    select
      front.id,
      front.priority + floor(
        extract(epoch from procjobs.clock() - coalesce(greatest(front.pj_created_at, front.scheduled_at), procjobs.clock()))
        / extract(epoch from p_ageing)
      ) as priority
    from level l
    cross join lateral (
      select j.id, j.priority, j.pj_created_at, j.scheduled_at
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = p_queue
        and j.priority = l.priority
      order by j.id
      limit p_max_jobs
    ) front
    where l.priority is not null
    order by 2 desc, 1
    limit p_max_jobs
  )
  select coalesce(array_agg(l.id order by l.priority desc, l.id), '{}')
  from line l
$$;
comment on function procjobs.choose_by_age(text, integer, interval) is
  'The next jobs of an ageing queue: by priority plus one point for each p_ageing that a job has waited, then by id.';

drop function if exists procjobs.set_queue(text, boolean, interval);
create or replace function procjobs.set_queue(queue text, fair boolean default null, ageing interval default null, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_changed boolean;
  v_why text := procjobs.give_reason(set_queue.reason);
  v_problem text := case
    when coalesce(length(set_queue.queue), 0) not between 1 and 128 then 'a queue name has 1 to 128 characters'
    when set_queue.fair and set_queue.ageing is not null then 'a queue takes turns between tenants or ages, not both'
    when set_queue.ageing <= interval '0' then 'ageing is not a positive length of time'
  end;
begin
  if v_problem is not null then
    raise exception 'queue % cannot be set so', quote_nullable(set_queue.queue)
      using errcode = 'PJ010',
            detail = v_problem,
            hint = 'For example: select procjobs.set_queue(''mail'', fair => true), or ageing => ''10 minutes''; without both it is by priority and id.';
  end if;

  insert into procjobs.queue_settings as q (name, fair, ageing)
  values (set_queue.queue, coalesce(set_queue.fair, false), set_queue.ageing)
  on conflict (name) do update
    set fair = excluded.fair,
        ageing = excluded.ageing,
        last_tenant = null
    where (q.fair, q.ageing) is distinct from (excluded.fair, excluded.ageing)
  returning true into v_changed;
  perform procjobs.give_reason(v_why);
  return coalesce(v_changed, false);
end
$$;
comment on function procjobs.set_queue(text, boolean, interval, text) is
  'How the next job of a queue is chosen, at once: fair takes turns between tenants (defer''s tenant); ageing adds a point of priority for each such time that a job waits, '
  'so that low priority is not starved; neither: by priority and id. False if it was so already; the reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';
