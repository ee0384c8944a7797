-- What counts for a limit, and the room that is left.
-- Owns:        limit_state.
-- Lock order:  limit_state by key.
-- A rate looks back over its period: at starts (limit_state.starts, counts) or, where it counts runs, at those that run
-- (limit_grants) and those that ended within the period (limit_ends). Every moment of a run lies between its start and its
-- end; so in no span of the period, whenever it begins, does whoever the jobs call see more than the rate.
-- What is later than the period from now was noted before the clock was set back: it counts no more.

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
    -- Far from its rate, a limit that is full goes on when one of its jobs ends: nobody need look before.
    case when coalesce(running.n < l.max_running, true) or coalesce(lasting.n, recent.n) * 2 >= l.rate
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
      and c.at <= p_now + l.per
  ) recent on l.rate is not null
  left join lateral (
    select coalesce(running.n, 0) + count(*) as n, min(e.at) as first
    from procjobs.limit_ends e
    where e.key = s.key
      and e.at > p_now - l.per
      and e.at <= p_now + l.per
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
        and e.at <= p_now + l.per
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
