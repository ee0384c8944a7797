-- Schedules as people set them: made, changed, per tenant, removed.
-- Owns:        rows of schedules and what is said in them; schedule_groups it meets for the first time.
-- Lock order:  schedule_groups, schedules: a parent, then its children by name.
-- What code and files declare comes through schedule_declare.sql, and is stored here too.

create or replace function procjobs.schedule_defaults()
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select '{
    "args": {}, "queue": null, "priority": null, "tenant": null, "tags": null, "max_attempts": null, "timeout": null,
    "lock": null, "queueing_lock": null, "cron": null, "every": null, "timezone": null,
    "anchor": "2000-01-01T00:00:00Z", "jitter": "00:00:00", "misfire": "latest", "misfire_window": "1 day",
    "catch_up": 100, "grace": "1 minute", "overlap": "skip", "group": null, "description": null, "periodic_id": null
  }'::jsonb
$$;
comment on function procjobs.schedule_defaults() is 'What a schedule has that says nothing about it.';

create or replace function procjobs.schedule_problem(p_schedule procjobs.schedules)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when coalesce(length(p_schedule.name), 0) not between 1 and 200 or p_schedule.name ~ '[[:cntrl:]]'
      then 'a schedule needs a name of 1 to 200 characters'
    when coalesce(length(p_schedule.task), 0) not between 1 and 128 then 'it needs a task'
    when num_nonnulls(p_schedule.cron, p_schedule.every) <> 1 then 'it needs either a cron or an interval (every)'
    when p_schedule.every < interval '1 second' then 'every is less than a second'
    when extract(year from p_schedule.every) <> 0 or extract(month from p_schedule.every) <> 0
      then 'every has months or years, which are not always the same length; a cron can say that'
    when p_schedule.misfire not in ('skip', 'latest', 'all') then 'misfire is skip, latest or all'
    when p_schedule.overlap not in ('skip', 'queue', 'allow') then 'overlap is skip, queue or allow'
    when p_schedule.misfire_window not between interval '1 second' and interval '366 days' then 'misfire_window is from a second to 366 days'
    when p_schedule.catch_up not between 1 and 10000 then 'catch_up is from 1 to 10000'
    when p_schedule.grace not between interval '1 second' and interval '366 days' then 'grace is from a second to 366 days'
    when p_schedule.jitter not between interval '0' and interval '366 days' then 'jitter is from 0 to 366 days'
    when not isfinite(p_schedule.anchor) then 'the anchor is not an instant'
    when jsonb_typeof(p_schedule.args) <> 'object' then 'args is not a JSON object'
    when jsonb_typeof(p_schedule.own_args) <> 'object' then 'the arguments of its own are not a JSON object'
    when length(p_schedule."group") not between 1 and 100 then 'a group has a name of 1 to 100 characters'
    when octet_length(p_schedule.lock) > 1000 or octet_length(p_schedule.queueing_lock) > 1000 then 'a lock has at most 1000 bytes'
  end
$$;
comment on function procjobs.schedule_problem(procjobs.schedules) is 'What is wrong with a schedule itself; null if nothing is.';

create or replace function procjobs.schedule_fault(p_schedule procjobs.schedules)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problem text := procjobs.schedule_problem(p_schedule);
begin
  if v_problem is not null then
    return jsonb_build_object(
      'code', 'PJ009', 'message', format('the schedule %s cannot be', quote_nullable(left(p_schedule.name, 200))), 'detail', v_problem,
      'hint', 'For example: select procjobs.schedule(''nightly'', ''clean_up'', cron => ''30 2 * * *'', timezone => ''Europe/Paris'');');
  end if;
  if p_schedule.cron is not null then
    perform procjobs.check_cron(p_schedule.cron, p_schedule.timezone);
  end if;
  perform procjobs.cron_zone(p_schedule.timezone);
  return coalesce(
    procjobs.option_fault(coalesce(p_schedule.queue, 'default'), null, array[p_schedule.lock], p_schedule.max_attempts, p_schedule.tags),
    procjobs.more_option_fault(null, null, null, p_schedule.tenant, p_schedule.timeout, false));
end
$$;
comment on function procjobs.schedule_fault(procjobs.schedules) is
  'What is wrong with a schedule, as a value for raise_fault; null if nothing is. A cron or zone that cannot be: raises PJ014.';

create or replace function procjobs.task_fault(p_schedule procjobs.schedules)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb;
begin
  select t.args_schema into v_schema from procjobs.tasks t where t.name = p_schedule.task;
  if not found then
    return procjobs.unknown_task_fault(p_schedule.task);
  end if;
  return procjobs.argument_fault(
    p_schedule.task, v_schema, procjobs.schedule_job(p_schedule, procjobs.clock(), '{"manual": false, "triggered_by": "schedule"}') -> 'args');
end
$$;
comment on function procjobs.task_fault(procjobs.schedules) is
  'Why a job of a schedule could not be enqueued now: its task is not registered, or would refuse the arguments. Null: nothing.';

create or replace function procjobs.schedule_hold(p_schedule procjobs.schedules)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_schedule.paused_at is not null then 'paused'
    when exists (select from procjobs.schedule_groups g where g.name = p_schedule."group" and not g.enabled) then 'off'
    when p_schedule.undeclared_at is not null then 'undeclared'
    when p_schedule.next_slot is null then 'faulty'
  end
$$;
comment on function procjobs.schedule_hold(procjobs.schedules) is
  'What keeps a schedule from firing: paused, off (its group is), undeclared (no living process has it in its code), faulty. Null: nothing. '
  'Definer: views ask it for readers, who have no rights on tables.';

create or replace function procjobs.store_schedule(p_old procjobs.schedules, p_set jsonb, p_checked boolean)
returns procjobs.schedules
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_set jsonb := p_set || case
    when p_set ->> 'cron' is not null and p_set ->> 'every' is null then '{"every": null}'::jsonb
    when p_set ->> 'every' is not null and p_set ->> 'cron' is null then '{"cron": null}'
    else '{}' end;
  v_new procjobs.schedules;
begin
  begin
    v_new := jsonb_populate_record(p_old, v_set);
  exception
    when data_exception then
      perform procjobs.raise_fault(jsonb_build_object(
        'code', 'PJ009', 'message', format('the schedule %s cannot be', quote_nullable(left(p_old.name, 200))), 'detail', sqlerrm,
        'hint', 'Spans are seconds, or words as in "5 minutes"; times have a zone, as in 2030-01-31T09:00Z.'));
  end;
  perform procjobs.raise_fault(procjobs.schedule_fault(v_new));
  if p_checked then
    perform procjobs.raise_fault(procjobs.task_fault(v_new));
  end if;
  insert into procjobs.schedule_groups (name, set_at)
  select v_new."group", v_now
  where v_new."group" is not null
  on conflict do nothing;

  -- New or changed times make up for nothing.
  if v_new.created_at is null
    or (v_new.cron, v_new.every, v_new.timezone, v_new.anchor) is distinct from (p_old.cron, p_old.every, p_old.timezone, p_old.anchor)
  then
    v_new.last_slot := greatest(coalesce(v_new.last_slot, v_now), case when v_new.created_at is not null then v_now end);
    v_new.next_slot := procjobs.schedule_next(v_new, v_new.last_slot);
  end if;
  v_new.fault := null;
  v_new.created_at := coalesce(v_new.created_at, v_now);
  v_new.updated_at := v_now;
  v_new.updated_by := session_user;
  v_new.due_at := case when procjobs.schedule_hold(v_new) is null then coalesce(
    case when p_old.due_at < v_new.next_slot and v_new.last_slot = p_old.last_slot then p_old.due_at end, v_new.next_slot) end;
  return procjobs.write_schedule(v_new);
end
$$;
comment on function procjobs.store_schedule(procjobs.schedules, jsonb, boolean) is
  'Writes a schedule with some of its columns changed, given as JSON. p_checked: its task must be registered and take the arguments. '
  'Returns the row; what cannot be: PJ001 to PJ005, PJ009, PJ010, PJ014.';

create or replace function procjobs.write_schedule(p_schedule procjobs.schedules)
returns procjobs.schedules
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from procjobs.schedules s where s.name = p_schedule.name) then
    update procjobs.schedules s
    set (
      task, args, own_args, queue, priority, tenant, tags, max_attempts, timeout, lock, queueing_lock, cron, every, timezone, anchor,
      jitter, misfire, misfire_window, catch_up, grace, overlap, "group", description, source, periodic_id, declared, last_slot,
      next_slot, due_at, held_until, undeclared_at, paused_at, paused_by, pause_reason, fault, updated_at, updated_by
    ) = (select
      r.task, r.args, r.own_args, r.queue, r.priority, r.tenant, r.tags, r.max_attempts, r.timeout, r.lock, r.queueing_lock, r.cron,
      r.every, r.timezone, r.anchor, r.jitter, r.misfire, r.misfire_window, r.catch_up, r.grace, r.overlap, r."group", r.description,
      r.source, r.periodic_id, r.declared, r.last_slot, r.next_slot, r.due_at, r.held_until, r.undeclared_at, r.paused_at, r.paused_by,
      r.pause_reason, r.fault, r.updated_at, r.updated_by
      from (select (p_schedule).*) r)
    where s.name = p_schedule.name;
    perform procjobs.follow_parent(p_schedule.name);
  else
    insert into procjobs.schedules select (p_schedule).*;
  end if;
  return p_schedule;
end
$$;
comment on function procjobs.write_schedule(procjobs.schedules) is 'Inserts or updates the row of a schedule; its children follow.';

create or replace function procjobs.follow_parent(p_parent text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  with child as (
    select c.name
    from procjobs.schedules c
    where c.parent = p_parent
    order by c.name
    for update
  )
  update procjobs.schedules c
  set task = p.task,
      args = p.args || coalesce(c.own_args, '{}'),
      queue = p.queue,
      priority = p.priority,
      tags = p.tags,
      max_attempts = p.max_attempts,
      timeout = p.timeout,
      jitter = p.jitter,
      misfire = p.misfire,
      misfire_window = p.misfire_window,
      catch_up = p.catch_up,
      grace = p.grace,
      overlap = p.overlap,
      "group" = p."group",
      description = p.description,
      due_at = case when c.paused_at is null and coalesce(g.enabled, true) then coalesce(c.due_at, c.next_slot) end
  from procjobs.schedules p
  left join procjobs.schedule_groups g on g.name = p."group"
  where p.name = p_parent
    and c.name in (select k.name from child k);
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.follow_parent(text) is
  'Gives the children of a schedule its task, arguments and options; their times and pauses are their own. Returns how many.';

create or replace function procjobs.require_schedule(p_name text)
returns procjobs.schedules
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found procjobs.schedules;
begin
  select s.* into v_found from procjobs.schedules s where s.name = p_name for update;
  if not found then
    perform procjobs.raise_no_schedule(p_name);
  end if;
  return v_found;
end
$$;
comment on function procjobs.require_schedule(text) is 'A schedule, locked. PJ015 if there is none of that name.';

create or replace function procjobs.raise_no_schedule(p_name text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'there is no schedule %', quote_nullable(left(p_name, 200))
    using errcode = 'PJ015',
          detail = coalesce('there are, for example, ' || (
            select string_agg(s.name, ', ') from (select name from procjobs.schedules order by name limit 5) s), 'there is none at all'),
          hint = 'select name from procjobs.schedule_list lists those there are.';
end
$$;
comment on function procjobs.raise_no_schedule(text) is 'Raises PJ015 for a name that is no schedule''s.';

drop function if exists procjobs.schedule(
  text, text, text, interval, jsonb, text, text, integer, text, text[], integer, interval, text, text, timestamptz, interval, text,
  interval, integer, interval, text, text, text
);
create or replace function procjobs.schedule(
  name text,
  task text default null,
  cron text default null,
  every interval default null,
  args jsonb default null,
  timezone text default null,
  queue text default null,
  priority integer default null,
  tenant text default null,
  tags text[] default null,
  max_attempts integer default null,
  timeout interval default null,
  lock text default null,
  queueing_lock text default null,
  anchor timestamptz default null,
  jitter interval default null,
  misfire text default null,
  misfire_window interval default null,
  catch_up integer default null,
  grace interval default null,
  overlap text default null,
  "group" text default null,
  description text default null,
  reason text default null
)
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set intervalstyle = 'postgres'
as $$
#variable_conflict use_column
declare
  v_set jsonb := jsonb_strip_nulls(jsonb_build_object(
    'task', schedule.task, 'cron', schedule.cron, 'every', schedule.every, 'timezone', schedule.timezone, 'queue', schedule.queue,
    'priority', schedule.priority, 'tenant', schedule.tenant, 'tags', schedule.tags, 'max_attempts', schedule.max_attempts,
    'timeout', schedule.timeout, 'lock', schedule.lock, 'queueing_lock', schedule.queueing_lock, 'anchor', schedule.anchor,
    'jitter', schedule.jitter, 'misfire', schedule.misfire, 'misfire_window', schedule.misfire_window, 'catch_up', schedule.catch_up,
    'grace', schedule.grace, 'overlap', schedule.overlap, 'group', schedule."group", 'description', schedule.description
  )) || case when schedule.args is null then '{}' else jsonb_build_object('args', schedule.args) end;
  v_why text := procjobs.give_reason(schedule.reason);
  v_row procjobs.schedules;
begin
  if num_nonnulls(schedule.cron, schedule.every) = 2 then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('the schedule %s cannot be', quote_nullable(left(schedule.name, 200))),
      'detail', 'it has a cron and an interval (every)', 'hint', 'Give one of them.'));
  end if;
  perform pg_advisory_xact_lock(hashtext('procjobs.schedule'), hashtext(schedule.name));
  select s.* into v_row from procjobs.schedules s where s.name = schedule.name for update;
  if not found then
    v_row := jsonb_populate_record(
      null::procjobs.schedules, procjobs.schedule_defaults() || jsonb_build_object('name', schedule.name, 'source', 'sql', 'declared', '{}'::jsonb));
  elsif v_row.parent is not null then
    v_set := procjobs.child_settings(v_row.name, v_set);
    if v_set ? 'args' then
      v_set := v_set || jsonb_build_object(
        'own_args', v_set -> 'args', 'args', (select p.args from procjobs.schedules p where p.name = v_row.parent) || (v_set -> 'args'));
    end if;
  end if;
  v_row := procjobs.store_schedule(v_row, v_set, true);
  perform procjobs.give_reason(v_why);
  return v_row.next_slot;
end
$$;
comment on function procjobs.schedule(
  text, text, text, interval, jsonb, text, text, integer, text, text[], integer, interval, text, text, timestamptz, interval, text,
  interval, integer, interval, text, text, text, text
) is
  'Enqueues a task again and again: at the times of a cron in a time zone (null: the system''s), or every so often, whatever clocks do. '
  'For a name that exists only what is given changes. jitter: each job is put off by a part of it. misfire: what becomes of slots nobody fired: skip, '
  'latest (default), all (the last catch_up) within misfire_window. grace: later than that was missed. overlap: skip (default), queue or allow. '
  'group: switched together. Arguments slot, timestamp and tenant of the task are filled in; the reason goes to procjobs.setting_log. Returns the next slot. Definer: the admin role has no rights on tables.';

create or replace function procjobs.child_settings(p_name text, p_set jsonb)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_not text := (
    select string_agg(k, ', ') from jsonb_object_keys(p_set) k where k not in ('cron', 'every', 'timezone', 'anchor', 'args'));
begin
  if v_not is not null then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('the schedule %s follows another one', quote_literal(p_name)), 'detail', v_not || ' cannot be its own',
      'hint', 'Its own are cron, every, timezone, anchor and args; change the others at ' || split_part(p_name, '/', 1) || '.'));
  end if;
  return p_set;
end
$$;
comment on function procjobs.child_settings(text, jsonb) is 'What is set for a child; PJ009 for what only its parent can say.';

drop function if exists procjobs.schedule_for(text, text, text, interval, text, jsonb);
create or replace function procjobs.schedule_for(
  name text,
  tenant text,
  cron text default null,
  every interval default null,
  timezone text default null,
  args jsonb default null,
  reason text default null
)
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set intervalstyle = 'postgres'
as $$
#variable_conflict use_column
declare
  v_parent procjobs.schedules := procjobs.require_schedule(schedule_for.name);
  v_name text := schedule_for.name || '/' || schedule_for.tenant;
  v_why text := procjobs.give_reason(schedule_for.reason);
  v_row procjobs.schedules;
begin
  if v_parent.parent is not null or coalesce(length(schedule_for.tenant), 0) not between 1 and 128 then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('%s cannot be a schedule for a tenant', quote_nullable(v_name)),
      'detail', case when v_parent.parent is not null then format('%s is one itself', v_parent.name) else 'a tenant has 1 to 128 characters' end,
      'hint', 'select procjobs.schedule_for(''digest'', ''ann'', cron => ''0 8 * * *'', timezone => ''Asia/Tokyo'');'));
  end if;
  select s.* into v_row from procjobs.schedules s where s.name = v_name for update;
  if not found then
    v_row := v_parent;
    v_row.name := v_name;
    v_row.parent := v_parent.name;
    v_row.tenant := schedule_for.tenant;
    v_row.source := 'sql';
    v_row.declared := '{}';
    v_row.periodic_id := null;
    v_row.lock := null;
    v_row.last_slot := null;
    v_row.next_slot := null;
    v_row.due_at := null;
    v_row.held_until := null;
    v_row.undeclared_at := null;
    v_row.paused_at := null;
    v_row.paused_by := null;
    v_row.pause_reason := null;
    v_row.created_at := null;
  end if;
  v_row := procjobs.store_schedule(v_row, jsonb_strip_nulls(jsonb_build_object(
    'cron', schedule_for.cron, 'every', schedule_for.every, 'timezone', schedule_for.timezone
  )) || case when schedule_for.args is null then '{}' else jsonb_build_object(
    'own_args', schedule_for.args, 'args', v_parent.args || schedule_for.args) end, true);
  perform procjobs.give_reason(v_why);
  return v_row.next_slot;
end
$$;
comment on function procjobs.schedule_for(text, text, text, interval, text, jsonb, text) is
  'A schedule of its own for a tenant or user, named name/tenant: with the task and options of `name`, also when these change, at a time of its own. '
  'Its jobs are the tenant''s; a task that takes an argument `tenant` is told. The same call again changes what is given; the reason goes to procjobs.setting_log. Returns the next slot. '
  'Unknown name: PJ015. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.unschedule(text);
create or replace function procjobs.unschedule(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_why text := procjobs.give_reason(unschedule.reason);
  v_found boolean;
begin
  delete from procjobs.schedules s where s.name = unschedule.name;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if v_found then
    perform procjobs.close_alerts(array['missed_slot', 'schedule_failing', 'cleanup_idle'], array[unschedule.name], 'unschedule');
  end if;
  return v_found;
end
$$;
comment on function procjobs.unschedule(text, text) is
  'Removes a schedule and those for its tenants. Jobs that are enqueued already run; its history stays; the reason goes to procjobs.setting_log. False if there is none. '
  'What code declares comes back when a worker starts: pause it instead. Definer: the admin role has no rights on tables.';
