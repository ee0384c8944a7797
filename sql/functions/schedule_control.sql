-- Schedules by hand: pause, resume, run now, backfill, preview; groups and the default zone.
-- Owns:        pauses in schedules, schedule_groups, schedule_settings, schedule_runs; schedule_ticks of kind backfill.
-- Lock order:  schedule_groups, schedules by name, schedule_runs or schedule_ticks, then as enqueue.sql says.

create or replace function procjobs.pause_schedule(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row procjobs.schedules := procjobs.require_schedule(pause_schedule.name);
begin
  if v_row.paused_at is not null then
    return false;
  end if;
  update procjobs.schedules s
  set paused_at = procjobs.clock(),
      paused_by = session_user,
      pause_reason = pause_schedule.reason,
      due_at = null
  where s.name = v_row.name;
  return true;
end
$$;
comment on function procjobs.pause_schedule(text, text) is
  'Holds a schedule off until it is resumed; those for its tenants go on. run_now works all the same. False if it was paused. Unknown name: PJ015. '
  'Definer: the admin role has no rights on tables.';

drop function if exists procjobs.resume_schedule(text);
create or replace function procjobs.resume_schedule(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row procjobs.schedules := procjobs.require_schedule(resume_schedule.name);
  v_why text := procjobs.give_reason(resume_schedule.reason);
begin
  if v_row.paused_at is null then
    perform procjobs.give_reason(v_why);
    return false;
  end if;
  v_row.paused_at := null;
  update procjobs.schedules s
  set paused_at = null,
      paused_by = null,
      pause_reason = null,
      held_until = procjobs.clock(),
      due_at = case when procjobs.schedule_hold(v_row) is null then s.next_slot end
  where s.name = v_row.name;
  perform procjobs.give_reason(v_why);
  return true;
end
$$;
comment on function procjobs.resume_schedule(text, text) is
  'Lets a schedule go on. Slots since the pause are treated by its misfire, but were not missed; the reason goes to procjobs.setting_log. False if it was not paused. Unknown name: PJ015. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.set_schedule_group("group" text, enabled boolean, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_was boolean;
  v_why text;
begin
  if set_schedule_group.enabled is null or coalesce(length(set_schedule_group."group"), 0) not between 1 and 100 then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('the group %s cannot be switched', quote_nullable(set_schedule_group."group")),
      'detail', 'it needs a name of 1 to 100 characters, and true or false',
      'hint', 'select procjobs.set_schedule_group(''cleanup'', false, ''moving the database'');'));
  end if;
  select g.enabled into v_was from procjobs.schedule_groups g where g.name = set_schedule_group."group" for update;
  if v_was is not distinct from set_schedule_group.enabled then
    return false;
  end if;
  v_why := procjobs.give_reason(set_schedule_group.reason);
  insert into procjobs.schedule_groups as g (name, enabled, set_at, set_by, reason)
  values (set_schedule_group."group", set_schedule_group.enabled, procjobs.clock(), session_user, set_schedule_group.reason)
  on conflict (name) do update
    set enabled = excluded.enabled, set_at = excluded.set_at, set_by = excluded.set_by, reason = excluded.reason;
  perform procjobs.give_reason(v_why);
  if set_schedule_group.enabled is distinct from coalesce(v_was, true) then
    perform procjobs.hold_group(set_schedule_group."group", set_schedule_group.enabled);
  end if;
  return true;
end
$$;
comment on function procjobs.set_schedule_group(text, boolean, text) is
  'Switches all schedules of a group off or on, at once and without a deploy. False if it was so. Slots meanwhile are treated by each schedule''s misfire '
  'when it goes on, but were not missed. Definer: the admin role has no rights on tables.';

create or replace function procjobs.hold_group(p_group text, p_enabled boolean)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  with member as (
    select s.name from procjobs.schedules s where s."group" = p_group order by s.name for update
  )
  update procjobs.schedules s
  set due_at = case when p_enabled and s.paused_at is null and s.undeclared_at is null then s.next_slot end,
      held_until = case when p_enabled then procjobs.clock() else s.held_until end
  where s.name in (select m.name from member m);
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.hold_group(text, boolean) is 'Holds the schedules of a group off, or lets them go on. Returns how many.';

drop function if exists procjobs.set_cron_timezone(text);
create or replace function procjobs.set_cron_timezone(timezone text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := procjobs.clock();
  v_why text := procjobs.give_reason(set_cron_timezone.reason);
  v_changed boolean;
begin
  if set_cron_timezone.timezone is null then
    perform procjobs.raise_invalid_zone('null');
  end if;
  perform procjobs.cron_zone(set_cron_timezone.timezone);
  update procjobs.schedule_settings s
  set timezone = set_cron_timezone.timezone
  where s.timezone <> set_cron_timezone.timezone;
  v_changed := found;
  perform procjobs.give_reason(v_why);
  if not v_changed then
    return false;
  end if;
  with those as (
    select s.name from procjobs.schedules s where s.cron is not null and s.timezone is null order by s.name for update
  ),
  moved as (
    select s.name, procjobs.cron_next(s.cron, set_cron_timezone.timezone, greatest(s.last_slot, v_now)) as next_slot
    from those t
    join procjobs.schedules s on s.name = t.name
  )
  update procjobs.schedules s
  set last_slot = greatest(s.last_slot, v_now),
      next_slot = m.next_slot,
      due_at = case when s.due_at is not null then m.next_slot end
  from moved m
  where s.name = m.name;
  return true;
end
$$;
comment on function procjobs.set_cron_timezone(text, text) is
  'Sets the time zone of all schedules that name none, from now on; the reason goes to procjobs.setting_log. False if it was so. Unknown zone: PJ014. Definer: the admin role has no rights on tables.';

create or replace function procjobs.run_now(name text, idempotency_key text default null, args jsonb default null)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row procjobs.schedules;
  v_run bigint;
  v_job bigint;
begin
  select s.* into v_row from procjobs.schedules s where s.name = run_now.name;
  if not found then
    perform procjobs.raise_no_schedule(run_now.name);
  elsif length(idempotency_key) not between 1 and 200 or jsonb_typeof(run_now.args) <> 'object' then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('%s cannot be run like that', quote_literal(v_row.name)),
      'detail', 'idempotency_key has 1 to 200 characters, args is a JSON object',
      'hint', 'select procjobs.run_now(''nightly'', ''click-7f3a'');'));
  end if;
  insert into procjobs.schedule_runs (schedule, key, triggered_at)
  values (v_row.name, idempotency_key, procjobs.clock())
  on conflict (schedule, key) where key is not null do nothing
  returning id into v_run;
  if v_run is null then
    return (select r.job_id from procjobs.schedule_runs r where r.schedule = v_row.name and r.key = idempotency_key);
  end if;

  v_row.args := v_row.args || coalesce(run_now.args, '{}');
  v_row.jitter := interval '0';
  select i.id into v_job
  from procjobs.defer_many(jsonb_build_array(procjobs.schedule_job(
    v_row, procjobs.clock(), jsonb_build_object('manual', true, 'triggered_by', session_user::text)))) i;
  update procjobs.schedule_runs r set job_id = v_job where r.id = v_run;
  return v_job;
end
$$;
comment on function procjobs.run_now(text, text, jsonb) is
  'Runs a schedule''s task now, paused or not, and returns the job; its slots stay as they are. The same idempotency_key again is the same run: '
  'a double click is one. args go over the schedule''s own. A task that takes them is told manual, triggered_by and, as slot or timestamp, the time. '
  'Unless overlap is allowed it waits for a run that has not ended. Unknown name: PJ015. Definer: the admin role has no rights on tables.';

create or replace function procjobs.backfill(
  name text, "from" timestamptz, until timestamptz default null, at_most integer default 1000, out fired integer, out remaining integer
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_row procjobs.schedules := procjobs.require_schedule(backfill.name);
  v_until timestamptz := least(backfill.until, procjobs.clock());
  v_slots timestamptz[];
  v_names text[];
  v_jobs jsonb;
begin
  if "from" is null or not isfinite("from") or at_most not between 1 and 10000 or "from" > v_until then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('%s cannot be backfilled like that', quote_literal(v_row.name)),
      'detail', format('from is %s, until is %s, at_most is %s', "from", v_until, at_most),
      'hint', 'Give an instant in the past and a later one, not after now, and at most 10000 slots at once.'));
  end if;
  -- One more than can be: more than that are not even counted.
  v_slots := procjobs.schedule_slots(v_row, "from" - interval '1 microsecond', v_until, 100001);
  v_slots := array(
    select u
    from unnest(v_slots) u
    where not exists (
      -- Looked up as tick.sql says.
      select
      from procjobs.schedule_ticks t
      where row(t.schedule, t.slot) between row(v_row.name, u) and row(v_row.name, u)
        and t.outcome = 'fired'
    )
    order by u
  );
  remaining := greatest(0, cardinality(v_slots) - at_most);
  v_slots := v_slots[:at_most];

  insert into procjobs.schedule_ticks as t (schedule, slot, kind, outcome, fired_at, fired_by)
  select v_row.name, u, 'backfill', 'fired', procjobs.clock(), session_user
  from unnest(v_slots) u
  on conflict (schedule, slot) do update
    set kind = excluded.kind, outcome = excluded.outcome, reason = null, fired_at = excluded.fired_at, fired_by = excluded.fired_by;
  v_row.jitter := interval '0';
  select array_agg(v_row.name), jsonb_agg(procjobs.schedule_job(v_row, u, '{"manual": true}' || jsonb_build_object('triggered_by', session_user::text)) order by u)
  into v_names, v_jobs
  from unnest(v_slots) u;
  fired := procjobs.enqueue_slots(v_names, v_slots, v_jobs);
end
$$;
comment on function procjobs.backfill(text, timestamptz, timestamptz, integer) is
  'Enqueues a job for every slot from an instant until another (now) that has not fired, skipped ones too: the oldest at_most of them, and says how many '
  'remain. Unless overlap is allowed they run one after another. Unknown name: PJ015. Definer: the admin role has no rights on tables.';

create or replace function procjobs.preview_schedule(name text, n integer default 10)
returns table (slot timestamptz, local timestamp, mark text, job_at timestamptz)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
rows 10
as $$
#variable_conflict use_column
declare
  v_row procjobs.schedules;
  v_zone text;
begin
  select s.* into v_row from procjobs.schedules s where s.name = preview_schedule.name;
  if not found then
    perform procjobs.raise_no_schedule(preview_schedule.name);
  end if;
  v_zone := procjobs.cron_zone(coalesce(v_row.timezone, procjobs.cron_timezone()));
  slot := procjobs.clock();
  for i in 1..least(n, 10000) loop
    slot := procjobs.schedule_next(v_row, slot);
    local := slot at time zone v_zone;
    mark := case when v_row.cron is not null then procjobs.cron_mark(procjobs.cron_fields(v_row.cron), v_zone, slot) end;
    job_at := coalesce(procjobs.jittered(v_row.name, slot, v_row.jitter), slot);
    return next;
  end loop;
end
$$;
comment on function procjobs.preview_schedule(text, integer) is
  'The next n slots of a schedule, as instants and as the clocks of its zone show them, with marks as of cron_preview, and when the job of each is due (jitter). '
  'Unknown name: PJ015. Definer: the reader role has no rights on tables.';
