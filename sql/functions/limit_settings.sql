-- Limits as people set and see them.
-- Owns:        rows of limits; forgets state of keys that nobody uses.
-- Lock order:  limits, limit_state, then procrastinate_jobs of jobs that wait for the limit.

create or replace function procjobs.count_running(p_name text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  -- Jobs that are just being ended are left out: they stop running.
  with met as (
    select j.id, k.key
    from procjobs.limits l
    join public.procrastinate_jobs j
      on procjobs.limit_applies(l, j.task_name, j.queue_name, j.pj_tags)
    cross join lateral (select procjobs.limit_key(l.name, l.key, j.pj_tenant, j.lock, j.args) as key offset 0) k
    where l.name = p_name
      and (l.max_running is not null or l.rate_counts = 'runs')
      and l.breaker is null  -- only a probe counts for it
      and j.status = 'doing'
      and k.key is not null
      and not exists (select from procjobs.limit_grants g where g.key = k.key and g.job_id = j.id)
    order by j.id
    for update of j skip locked
  ),
  state as (
    insert into procjobs.limit_state (key, limit_name)
    select distinct m.key, p_name from met m
    on conflict do nothing
  ),
  granted as (
    insert into procjobs.limit_grants (key, job_id)
    select m.key, m.id from met m
    on conflict do nothing
    returning key, job_id
  )
  update public.procrastinate_jobs j
  set pj_limits = array_append(j.pj_limits, g.key)
  from granted g
  where j.id = g.job_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.count_running(text) is 'Gives the jobs that run already their grants of a limit that is new or changed. Returns how many.';

drop function if exists procjobs.set_limit(text, text, text, text, integer, integer, interval, text);
drop function if exists procjobs.set_limit(text, text, text, text, integer, integer, interval, text, text);
create or replace function procjobs.set_limit(
  name text,
  task text default null,
  queue text default null,
  key text default null,
  max_running integer default null,
  rate integer default null,
  per interval default null,
  on_excess text default 'wait',
  reason text default null,
  rate_counts text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed boolean;
  -- What it was, if it is not said: whoever only raises the rate of mails does not loosen what the mail server was promised.
  v_counts text := coalesce(
    set_limit.rate_counts,
    (select l.rate_counts from procjobs.limits l where l.name = set_limit.name and set_limit.rate is not null)
  );
  v_why text := procjobs.give_reason(set_limit.reason);
  v_problem text := case
    when coalesce(length(set_limit.name), 0) not between 1 and 100 or set_limit.name like '%:%'
      then 'a limit needs a name of 1 to 100 characters without a colon'
    when num_nonnulls(set_limit.task, set_limit.queue, set_limit.key) = 0 then 'it is for no task, no queue and no key'
    when set_limit.max_running is null and set_limit.rate is null then 'it limits nothing'
    when set_limit.max_running < 0 then 'max_running is less than 0'
    when set_limit.rate < 1 then 'rate is less than 1'
    when (set_limit.rate is null) <> (set_limit.per is null) then 'a rate is a number of starts and a period: rate and per go together'
    when set_limit.per <= interval '0' then 'per is not a positive length of time'
    when v_counts not in ('starts', 'runs') then 'rate_counts is not known'
    when v_counts is not null and set_limit.rate is null then 'rate_counts says what a rate counts, and it has none'
    when set_limit.on_excess is null or set_limit.on_excess not in ('wait', 'drop', 'cancel_oldest') then 'on_excess is not known'
    when set_limit.on_excess = 'cancel_oldest' and set_limit.max_running is null then 'only max_running can be met by cancelling the oldest'
    when set_limit.key not in ('tenant', 'lock') and set_limit.key !~ '^args(\.[^.]+)+$' then 'the key is not known'
  end;
begin
  if v_problem is not null then
    raise exception 'limit % cannot be set', quote_nullable(set_limit.name)
      using errcode = 'PJ009',
            detail = v_problem,
            hint = 'For example: select procjobs.set_limit(''smtp'', queue => ''mail'', rate => 50, per => ''1 second''); '
              'key is tenant, lock or a path such as args.user_id; on_excess is wait, drop or cancel_oldest; rate_counts is starts or runs.';
  end if;

  insert into procjobs.limits as l (name, task, queue, key, max_running, rate, per, rate_counts, on_excess, set_at)
  values (
    set_limit.name, set_limit.task, set_limit.queue, set_limit.key, set_limit.max_running, set_limit.rate,
    set_limit.per, v_counts, set_limit.on_excess, procjobs.clock()
  )
  on conflict on constraint limits_pkey do update
  set task = excluded.task, queue = excluded.queue, key = excluded.key, max_running = excluded.max_running,
      rate = excluded.rate, per = excluded.per, rate_counts = excluded.rate_counts, on_excess = excluded.on_excess, set_at = excluded.set_at, set_by = session_user
  where (l.task, l.queue, l.key, l.max_running, l.rate, l.per, l.rate_counts, l.on_excess) is distinct from (
    excluded.task, excluded.queue, excluded.key, excluded.max_running, excluded.rate, excluded.per, excluded.rate_counts,
    excluded.on_excess
  )
  returning true into v_changed;
  perform procjobs.give_reason(v_why);
  if v_changed then
    perform procjobs.count_running(set_limit.name);
    -- What waits for it is judged anew, by the new rule.
    perform procjobs.unhold_jobs(array(select s.key from procjobs.limit_state s where s.limit_name = set_limit.name));
  end if;
  return coalesce(v_changed, false);
end
$$;
comment on function procjobs.set_limit(text, text, text, text, integer, integer, interval, text, text, text) is
  'Limits the jobs of a task, of a queue, or of a task in a queue, over the whole fleet, at once: max_running at a time, and rate starts within any span of per. '
  'rate_counts: starts, or runs, each until per after its end, so that whoever the jobs call sees no more than rate within any span, either (null: as it was, else starts). '
  'With key (tenant, lock, args.user_id) each value has a count of its own. Excess waits (wait), ends as cancelled (drop), or takes the place of the oldest (cancel_oldest). '
  'The same name again sets the limit anew, with what is said then; false if it was so already; the reason goes to procjobs.setting_log. Jobs that run already go on, and count. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.drop_limit(text);
create or replace function procjobs.drop_limit(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[];
  v_why text := procjobs.give_reason(drop_limit.reason);
  v_found boolean;
begin
  delete from procjobs.limits l where l.name = drop_limit.name and l.breaker is null;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if not v_found then
    return false;
  end if;
  with gone as (
    delete from procjobs.limit_state s
    where s.limit_name = drop_limit.name
    returning s.key
  )
  select array_agg(g.key) into v_keys from gone g;
  delete from procjobs.limit_grants g where g.key = any (v_keys);
  delete from procjobs.limit_ends e where procjobs.limit_name_of(e.key) = drop_limit.name;
  perform procjobs.unhold_jobs(v_keys);
  return v_found;
end
$$;
comment on function procjobs.drop_limit(text, text) is
  'Removes a limit; what waited for it goes on; the reason goes to procjobs.setting_log. False if there is none of that name. Definer: the admin role has no rights on tables.';

create or replace function procjobs.forget_limit_state(p_max_rows integer default 1000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  -- Grants of jobs that do not run: none, unless somebody switched the triggers off.
  delete from procjobs.limit_grants g
  where not exists (
    select from public.procrastinate_jobs j where j.id = g.job_id and j.status is not distinct from 'doing'
  );

  delete from procjobs.limit_ends e
  where not exists (
    select from procjobs.limits l
    where l.name = procjobs.limit_name_of(e.key)
      and e.at > procjobs.clock() - l.per
      and e.at <= procjobs.clock() + l.per
  );

  delete from procjobs.limit_state
  where key in (
    select s.key
    from procjobs.limit_state s
    left join procjobs.limits l on l.name = s.limit_name
    where not exists (select from procjobs.limit_grants g where g.key = s.key)
      and (l.name is null or l.rate is null or not exists (
        select from unnest(s.starts) at where at > procjobs.clock() - l.per and at <= procjobs.clock() + l.per
      ))
      and not exists (
        select
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for = 'limit'
          and j.pj_held_by = s.key
      )
    limit p_max_rows
    for update of s skip locked
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_limit_state(integer) is 'Forgets the keys of limits that nothing counts for and nothing waits for. Returns how many.';
