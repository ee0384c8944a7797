-- Circuit breakers: jobs whose dependency fails wait until it is well again, and spend no attempt on it.
-- Owns:        breakers; the rows of limits, limit_state and limit_grants that an open breaker has.
-- Lock order:  breakers by name, then limits, limit_state, limit_grants, then waiting jobs that nobody else holds (skip locked),
--              alerts. Whoever ends or claims a job takes no breaker; a delivery is reported under its notification's lock.
-- An open breaker is a limit of no job at a time, a half-open one a limit of one: admission, waiting, waking and exactness
-- are those of the limits. A closed one is no row there, and costs the claim nothing.

create or replace function procjobs.breaker_limit(p_breaker text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select 'breaker:' || p_breaker
$$;
comment on function procjobs.breaker_limit(text) is
  'The name, and the key, of the limit that a breaker is while it is not closed. No other limit''s name has a colon.';

create or replace function procjobs.trip_breaker(p_name text, p_until timestamptz, p_by text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_breaker procjobs.breakers;
begin
  update procjobs.breakers b
  set state = 'open', since = procjobs.clock(), retry_at = p_until, openings = b.openings + 1, opened_by = p_by,
      window_from = null, failed = 0, succeeded = 0
  where b.name = p_name
  returning b.* into v_breaker;
  insert into procjobs.limits as l (name, breaker, tasks, queue, tag, max_running, set_at)
  values (
    procjobs.breaker_limit(p_name), p_name, v_breaker.tasks, v_breaker.queue, v_breaker.tag, 0, procjobs.clock()
  )
  on conflict on constraint limits_pkey do update
  set tasks = excluded.tasks, queue = excluded.queue, tag = excluded.tag, max_running = 0, set_at = excluded.set_at;
  perform procjobs.raise_alert('breaker_open', p_name,
    format('breaker %s is open since %s: jobs that need it wait', p_name, procjobs.say_time(v_breaker.since)),
    jsonb_build_object('since', v_breaker.since, 'retry_at', v_breaker.retry_at, 'openings', v_breaker.openings));
end
$$;
comment on function procjobs.trip_breaker(text, timestamptz, text) is
  'Opens a breaker that the caller has locked; p_by: who does it by hand. Jobs that run go on.';

create or replace function procjobs.mend_breaker(p_name text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update procjobs.breakers b
  set state = 'closed', since = procjobs.clock(), retry_at = null, openings = 0, opened_by = null,
      window_from = null, failed = 0, succeeded = 0
  where b.name = p_name;
  delete from procjobs.limits l where l.breaker = p_name;
  delete from procjobs.limit_state s where s.limit_name = procjobs.breaker_limit(p_name);
  delete from procjobs.limit_grants g where g.key = procjobs.breaker_limit(p_name);
  -- The first at once; the others in the next rounds of upkeep, which find their limit gone.
  perform procjobs.unhold_jobs(array[procjobs.breaker_limit(p_name)], 500);
  perform procjobs.close_alerts(array['breaker_open'], array[p_name], 'it is closed');
end
$$;
comment on function procjobs.mend_breaker(text) is 'Closes a breaker that the caller has locked, and lets go what waits for it.';

create or replace function procjobs.try_breakers()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[];
begin
  with due as (
    select b.name from procjobs.breakers b
    where b.state = 'open'
      and (
        b.retry_at <= procjobs.clock()
        -- Later than failures open one for: the clock was set back.
        or b.opened_by is null and b.retry_at > procjobs.clock() + greatest(b.cool_down, b.longest) + interval '1 minute'
      )
    order by b.name
    for no key update skip locked
  ),
  tried as (
    update procjobs.breakers b
    set state = 'half_open', since = procjobs.clock(), retry_at = null
    from due
    where b.name = due.name
    returning b.name
  )
  select array_agg(t.name) into v_names from tried t;
  if v_names is null then
    return 0;
  end if;
  update procjobs.limits l set max_running = 1, set_at = procjobs.clock() where l.breaker = any (v_names);
  -- From now on only the probe counts: what ran before it opened, or probed before, is no probe any more.
  delete from procjobs.limit_grants g where g.key = any (array(select procjobs.breaker_limit(n) from unnest(v_names) n));
  perform procjobs.promote_limits(array(select procjobs.breaker_limit(n) from unnest(v_names) n));
  return cardinality(v_names);
end
$$;
comment on function procjobs.try_breakers() is
  'Makes breakers half open whose cool-down is over: one job in the whole fleet may try. Returns how many.';

create or replace function procjobs.is_probe(p_breaker text, p_job bigint)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from procjobs.limit_grants g where g.key = procjobs.breaker_limit(p_breaker) and g.job_id = p_job
  )
$$;
comment on function procjobs.is_probe(text, bigint) is 'Whether this job is the probe of a half-open breaker.';

drop function if exists procjobs.report_outcome(text, boolean);
create or replace function procjobs.report_outcome(
  breaker text, ok boolean, job bigint default null, error text default null
)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := procjobs.clock();
  v_breaker procjobs.breakers;
begin
  -- Most outcomes are successes of what is well, and write nothing.
  select b.* into v_breaker from procjobs.breakers b where b.name = report_outcome.breaker;
  if not found or report_outcome.ok is null
    or report_outcome.ok and v_breaker.state = 'closed' and (v_breaker.failed = 0 or v_breaker.window_from <= v_now - v_breaker.per)
  then
    return v_breaker.state;
  end if;
  select b.* into v_breaker from procjobs.breakers b where b.name = report_outcome.breaker for no key update;

  if not report_outcome.ok then
    update procjobs.breakers b
    set last_error = left(report_outcome.error, 500), last_failure_at = v_now
    where b.name = v_breaker.name;
  end if;
  if v_breaker.state = 'open'
    or v_breaker.state = 'half_open' and job is not null and not procjobs.is_probe(v_breaker.name, job)
  then
    return v_breaker.state;  -- news of what began before it opened
  elsif v_breaker.state = 'half_open' and report_outcome.ok then
    perform procjobs.mend_breaker(v_breaker.name);
    return 'closed';
  elsif v_breaker.state = 'half_open' then
    perform procjobs.trip_breaker(
      v_breaker.name,
      v_now + least(v_breaker.longest, v_breaker.cool_down * power(2, least(v_breaker.openings, 20))),
      null);
    return 'open';
  end if;

  update procjobs.breakers b
  set window_from = case when c.anew then v_now else b.window_from end,
      failed = case when c.anew then 0 else b.failed end + case when report_outcome.ok then 0 else 1 end,
      succeeded = case when c.anew then 0 else b.succeeded end + case when report_outcome.ok then 1 else 0 end
  from (select v_breaker.window_from is null or v_breaker.window_from <= v_now - v_breaker.per as anew) c
  where b.name = v_breaker.name
  returning b.* into v_breaker;
  if v_breaker.failed >= v_breaker.failures
    and v_breaker.failed >= v_breaker.rate * (v_breaker.failed + v_breaker.succeeded)
  then
    perform procjobs.trip_breaker(v_breaker.name, v_now + v_breaker.cool_down, null);
    return 'open';
  end if;
  return 'closed';
end
$$;
comment on function procjobs.report_outcome(text, boolean, bigint, text) is
  'Tells a breaker how a use of its dependency ended, at the end of the caller''s transaction. job: the queue job, so that of a half-open '
  'breaker only the probe counts. Returns its state after that; null: there is none of that name. Definer: the worker role has no rights on tables.';

create or replace function procjobs.lock_breaker(p_name text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from procjobs.breakers b where b.name = p_name for update;
  if not found then
    raise exception 'there is no breaker %', quote_nullable(p_name)
      using errcode = 'PJ009',
            detail = format('breakers: %s', coalesce((select string_agg(b.name, ', ' order by b.name) from procjobs.breakers b), 'none')),
            hint = 'select procjobs.set_breaker(''crm'', tasks => array[''sync_customer'']) makes one.';
  end if;
end
$$;
comment on function procjobs.lock_breaker(text) is 'Locks a breaker, or says that there is none of that name.';

create or replace function procjobs.open_breaker(name text, "for" interval default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a_for alias for $2;
begin
  if a_for <= interval '0' then
    raise exception 'breaker % cannot be opened for %', quote_nullable(open_breaker.name), a_for
      using errcode = 'PJ009',
            detail = 'for is not a positive length of time',
            hint = 'select procjobs.open_breaker(''crm'', ''1 hour''); without a time it is open until procjobs.close_breaker(''crm'').';
  end if;
  perform procjobs.lock_breaker(open_breaker.name);
  perform procjobs.trip_breaker(open_breaker.name, coalesce(procjobs.clock() + a_for, 'infinity'), session_user);
  return true;
end
$$;
comment on function procjobs.open_breaker(text, interval) is
  'Opens a breaker by hand: jobs that need it wait. for: then one of them tries; null: until close_breaker. Definer: the admin role has no rights on tables.';

create or replace function procjobs.close_breaker(name text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state text;
begin
  perform procjobs.lock_breaker(close_breaker.name);
  select b.state into v_state from procjobs.breakers b where b.name = close_breaker.name;
  perform procjobs.mend_breaker(close_breaker.name);
  return v_state <> 'closed';
end
$$;
comment on function procjobs.close_breaker(text) is
  'Closes a breaker by hand; what waited for it goes on. False if it was closed. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.set_breaker(text, text[], text, text, integer, double precision, interval, interval, interval);
create or replace function procjobs.set_breaker(
  name text,
  tasks text[] default null,
  queue text default null,
  tag text default null,
  failures integer default 5,
  rate double precision default 0.5,
  per interval default '1 minute',
  cool_down interval default '30 seconds',
  longest interval default '10 minutes',
  reason text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed boolean;
  v_why text := procjobs.give_reason(set_breaker.reason);
  v_problem text := case
    when coalesce(length(set_breaker.name), 0) not between 1 and 90 or set_breaker.name like '%:%'
      then 'a breaker needs a name of 1 to 90 characters without a colon'
    when coalesce(cardinality(set_breaker.tasks), 0) = 0 and set_breaker.queue is null then 'it is neither for tasks nor for a queue'
    when array_position(set_breaker.tasks, null) > 0 then 'a task has no name'
    when coalesce(set_breaker.failures, 0) < 1 then 'failures is less than 1'
    when set_breaker.rate is null or not set_breaker.rate between 0 and 1 then 'rate is not a share from 0 to 1'
    when set_breaker.per is null or set_breaker.per <= interval '0' then 'per is not a positive length of time'
    when set_breaker.cool_down is null or set_breaker.cool_down <= interval '0' then 'cool_down is not a positive length of time'
    when set_breaker.longest is null or set_breaker.longest < set_breaker.cool_down then 'longest is shorter than cool_down'
  end;
begin
  if v_problem is not null then
    raise exception 'breaker % cannot be set', quote_nullable(set_breaker.name)
      using errcode = 'PJ009',
            detail = v_problem,
            hint = 'For example: select procjobs.set_breaker(''crm'', tasks => array[''sync_customer''], failures => 5, per => ''1 minute'');';
  end if;
  insert into procjobs.breakers as b (
    name, tasks, queue, tag, failures, rate, per, cool_down, longest, set_at, since
  )
  values (
    set_breaker.name, nullif(set_breaker.tasks, '{}'), set_breaker.queue, set_breaker.tag, set_breaker.failures,
    set_breaker.rate, set_breaker.per, set_breaker.cool_down, set_breaker.longest, procjobs.clock(), procjobs.clock()
  )
  on conflict on constraint breakers_pkey do update
  set tasks = excluded.tasks, queue = excluded.queue, tag = excluded.tag, failures = excluded.failures, rate = excluded.rate,
      per = excluded.per, cool_down = excluded.cool_down, longest = excluded.longest, set_at = excluded.set_at, set_by = session_user
  where (b.tasks, b.queue, b.tag, b.failures, b.rate, b.per, b.cool_down, b.longest) is distinct from (
    excluded.tasks, excluded.queue, excluded.tag, excluded.failures, excluded.rate, excluded.per, excluded.cool_down, excluded.longest
  )
  returning true into v_changed;
  perform procjobs.give_reason(v_why);
  if v_changed then
    update procjobs.limits l
    set tasks = nullif(set_breaker.tasks, '{}'), queue = set_breaker.queue, tag = set_breaker.tag
    where l.breaker = set_breaker.name;
    -- What waits for it is judged anew.
    perform procjobs.unhold_jobs(array[procjobs.breaker_limit(set_breaker.name)]);
  end if;
  return coalesce(v_changed, false);
end
$$;
comment on function procjobs.set_breaker(text, text[], text, text, integer, double precision, interval, interval, interval, text) is
  'Makes a breaker for the jobs of tasks, of a queue, or of tasks in a queue; with tag only for those that carry it. It opens after this many failures within per, '
  'if they are at least the share rate of all outcomes since the first; stays open for cool_down, doubled after each failed probe up to longest. '
  'The same name again changes it and leaves its state; false if it was so already; the reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.drop_breaker(text);
create or replace function procjobs.drop_breaker(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text;
begin
  perform from procjobs.breakers b where b.name = drop_breaker.name for update;
  if not found then
    return false;
  end if;
  perform procjobs.mend_breaker(drop_breaker.name);
  v_why := procjobs.give_reason(drop_breaker.reason);
  delete from procjobs.breakers b where b.name = drop_breaker.name;
  perform procjobs.give_reason(v_why);
  return true;
end
$$;
comment on function procjobs.drop_breaker(text, text) is
  'Removes a breaker; what waited for it goes on; the reason goes to procjobs.setting_log. False if there is none of that name. Definer: the admin role has no rights on tables.';

create or replace function procjobs.breakers_due_in()
returns double precision
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select extract(epoch from min(b.retry_at)) - extract(epoch from procjobs.clock())
  from procjobs.breakers b
  where b.state = 'open'
    and b.retry_at < 'infinity'
$$;
comment on function procjobs.breakers_due_in() is 'Seconds until the next open breaker becomes half open; null when none will by itself.';

create or replace function procjobs.breaker_reason(p_job public.procrastinate_jobs)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case b.state
    when 'open' then format('breaker %s is open %s%s', b.name,
      case when b.retry_at = 'infinity' then 'until somebody closes it' else 'until ' || procjobs.say_time(b.retry_at) end,
      case when b.opened_by is not null then format(': %s opened it at %s', b.opened_by, procjobs.say_time(b.since))
        else format(': its dependency failed, last at %s', procjobs.say_time(b.last_failure_at)) end)
    else format('breaker %s is half open: %s', b.name, coalesce(
      (select format('job %s tries first', min(g.job_id)) from procjobs.limit_grants g where g.key = p_job.pj_held_by having count(*) > 0),
      'the next job tries'))
  end
  from procjobs.breakers b
  where p_job.pj_waits_for = 'limit'
    and p_job.pj_held_by = procjobs.breaker_limit(b.name)
    and b.state <> 'closed'
$$;
comment on function procjobs.breaker_reason(public.procrastinate_jobs) is 'Which breaker a job waits for, in words; null if it waits for none.';

create or replace function procjobs.failed_probe(p_job public.procrastinate_jobs)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Behind the others: if it is this job that breaks things, the next probe is another.
  select coalesce(max(b.retry_at) filter (where b.retry_at < 'infinity'), procjobs.clock()) + interval '1 second'
  from procjobs.breakers b
  where b.state = 'open'
    and procjobs.breaker_limit(b.name) = any (p_job.pj_limits)
  having count(*) > 0
$$;
comment on function procjobs.failed_probe(public.procrastinate_jobs) is
  'When a job may run again that tried for all others and failed, which spends no attempt; null if it was no such job.';

create or replace function procjobs.list_breakers()
returns table (
  name text, state text, since timestamptz, retry_at timestamptz, probe_job bigint, waiting integer, openings integer,
  failed integer, succeeded integer, last_failure_at timestamptz, last_error text, tasks text[], queue text, tag text,
  failures integer, rate double precision, per interval, cool_down interval, longest interval, opened_by text,
  set_at timestamptz, set_by text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.breaker_list b order by b.state = 'closed', b.name
$$;
comment on function procjobs.list_breakers() is 'procjobs.breaker_list, those that are not closed first.';
