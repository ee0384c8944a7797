-- Schedules that code, files and packs declare, and what the environment says of all.
-- Owns:        schedules.declared, undeclared_at; worker_state.schedules; what the environment said last in schedule_groups and schedule_settings.
-- Lock order:  worker_state (one row), then schedule_groups, schedules by name.
-- A three-way merge: what was declared, what is declared now, what the row says. Only what is declared differently than before
-- is written, so that what an administrator changed in SQL stays. A file's words go over those of the code.

create or replace function procjobs.declared_words(p_declared jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_declared -> 'base', '{}') || coalesce(p_declared -> 'file', '{}')
$$;
comment on function procjobs.declared_words(jsonb) is 'What is declared of a schedule in all: by its code or pack, and over that by the file.';

create or replace function procjobs.changed_words(p_old jsonb, p_new jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((
    select jsonb_object_agg(n.key, n.value)
    from jsonb_each(p_new) n
    where n.value is distinct from p_old -> n.key
  ), '{}') || coalesce((
    select jsonb_object_agg(o.key, procjobs.schedule_defaults() -> o.key)
    from jsonb_object_keys(p_old) o (key)
    where not p_new ? o.key
  ), '{}')
$$;
comment on function procjobs.changed_words(jsonb, jsonb) is
  'What is declared differently than before; what is not declared any more goes back to its default.';

create or replace function procjobs.fault_in_words(p_fault jsonb)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select nullif(concat_ws(': ', p_fault ->> 'message', p_fault ->> 'detail'), '')
$$;
comment on function procjobs.fault_in_words(jsonb) is 'A fault as one sentence; null stays null.';

create or replace function procjobs.declare_schedule(p_source text, p_name text, p_words jsonb)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_layer text := case when p_source = 'file' then 'file' else 'base' end;
  v_row procjobs.schedules;
  v_new boolean;
  v_set jsonb;
  v_declared jsonb;
begin
  -- A hundred workers that start with the same code lock and write nothing.
  if exists (
    select from procjobs.schedules s
    where s.name = p_name and s.declared -> v_layer = p_words and s.undeclared_at is null and (v_layer = 'file' or s.source = p_source)
  ) then
    return false;
  end if;
  perform pg_advisory_xact_lock(hashtext('procjobs.schedule'), hashtext(p_name));
  select s.* into v_row from procjobs.schedules s where s.name = p_name for update;
  v_new := not found;
  if v_new then
    v_row := jsonb_populate_record(null::procjobs.schedules, procjobs.schedule_defaults()
      || jsonb_build_object('name', p_name, 'source', p_source, 'declared', '{}'::jsonb));
  elsif v_row.parent is not null or v_row.source = 'sql' and v_layer = 'base' then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('the schedule %s cannot be declared', quote_literal(p_name)),
      'detail', 'somebody made a schedule of that name with SQL', 'hint', 'Give it another name, or procjobs.unschedule the other one.'));
  end if;
  v_declared := v_row.declared || jsonb_build_object(v_layer, p_words);
  v_set := procjobs.changed_words(procjobs.declared_words(v_row.declared), procjobs.declared_words(v_declared));
  if v_set ? 'enabled' then
    v_row.paused_at := case when v_set ->> 'enabled' = 'false' then procjobs.clock() end;
    v_row.paused_by := case when v_row.paused_at is not null then p_source end;
    v_row.pause_reason := case when v_row.paused_at is not null then 'it is declared as not enabled' end;
    v_row.held_until := case when v_row.paused_at is null and not v_new then procjobs.clock() else v_row.held_until end;
  end if;
  v_row.declared := v_declared;
  v_row.undeclared_at := case when v_layer = 'file' then v_row.undeclared_at end;
  if v_layer = 'base' then
    v_row.source := p_source;
  end if;
  if v_new and p_source = 'periodic' then
    v_row := procjobs.begin_periodic(jsonb_populate_record(v_row, v_set));
  end if;
  v_row := procjobs.store_schedule(v_row, v_set - 'enabled', false);
  update procjobs.schedules s
  set fault = procjobs.fault_in_words(f.fault)
  from procjobs.task_fault(v_row) as f (fault)
  where s.name = p_name
    and f.fault is not null;
  return true;
end
$$;
comment on function procjobs.declare_schedule(text, text, jsonb) is
  'Makes or changes one schedule as its source declares it; true if that changed anything. A task that is not registered yet is no error: the fault says so.';

create or replace function procjobs.begin_periodic(p_schedule procjobs.schedules)
returns procjobs.schedules
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_last timestamptz := to_timestamp(procjobs.last_periodic(p_schedule.task, p_schedule.periodic_id));
begin
  -- As Procrastinate does: from where it was left, and of one that never fired the newest slot, which may be due already.
  perform procjobs.check_cron(p_schedule.cron, p_schedule.timezone);
  p_schedule.last_slot := coalesce(v_last, (
    select s - interval '1 microsecond'
    from procjobs.cron_slots(
      p_schedule.cron, coalesce(p_schedule.timezone, procjobs.cron_timezone()), v_now - p_schedule.misfire_window, v_now, 1) s
  ), v_now);
  return p_schedule;
end
$$;
comment on function procjobs.begin_periodic(procjobs.schedules) is 'Where a periodic task that is met for the first time goes on.';

create or replace function procjobs.declare_schedules(
  p_source text, p_schedules jsonb, p_worker bigint default null, p_complete boolean default false
)
returns table (name text, changed boolean, fault text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_names text[] := array(select e ->> 'name' from jsonb_array_elements(p_schedules) e order by 1);
  v_words jsonb;
  v_detail text;
  v_why text;
begin
  if p_source not in ('code', 'periodic', 'file', 'pack') then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('nothing is declared by %s', quote_nullable(p_source)),
      'detail', 'it says where schedules come from', 'hint', 'One of code, periodic, file, pack.'));
  end if;
  if p_worker is not null then
    update procjobs.worker_state w
    set schedules = array(select distinct n from unnest(w.schedules || v_names) n order by n)
    where w.id = p_worker;
  end if;
  v_why := procjobs.give_reason(format('declared by %s', p_source));
  for v_words in select e from jsonb_array_elements(p_schedules) e order by e ->> 'name' loop
    name := v_words ->> 'name';
    changed := false;
    fault := null;
    begin
      changed := procjobs.declare_schedule(p_source, name, procjobs.known_words(name, v_words - 'name'));
    exception
      when sqlstate 'PJ009' or sqlstate 'PJ010' or sqlstate 'PJ014' then
        get stacked diagnostics fault = message_text, v_detail = pg_exception_detail;
        fault := concat_ws(': ', fault, v_detail);
    end;
    return next;
  end loop;
  if p_complete then
    perform procjobs.forget_undeclared(p_source, v_names);
  end if;
  perform procjobs.give_reason(v_why);
end
$$;
comment on function procjobs.declare_schedules(text, jsonb, bigint, boolean) is
  'Makes or changes the schedules that a source (code, periodic, file, pack) declares: an array of objects with a name and the names of procjobs.schedule''s arguments, '
  'and enabled. One row each: whether it changed, or why it cannot be; the others are not harmed. p_worker: the process that has them in its code. '
  'p_complete: what the source declared before and is not here is taken back. Definer: the worker role has no rights on tables.';

create or replace function procjobs.known_words(p_name text, p_words jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text := (
    select string_agg(k, ', ') from jsonb_object_keys(p_words) k where not procjobs.schedule_defaults() ? k and k not in ('task', 'enabled'));
begin
  if v_unknown is not null or coalesce(jsonb_typeof(p_words -> 'enabled'), 'boolean') <> 'boolean' then
    perform procjobs.raise_fault(jsonb_build_object(
      'code', 'PJ009', 'message', format('the schedule %s cannot be declared', quote_nullable(p_name)),
      'detail', coalesce('it has no ' || v_unknown, 'enabled is neither true nor false'),
      'hint', 'task, enabled and the names of procjobs.schedule''s arguments.'));
  end if;
  return p_words;
end
$$;
comment on function procjobs.known_words(text, jsonb) is 'What is declared of a schedule; PJ009 for words that mean nothing.';

create or replace function procjobs.forget_undeclared(p_source text, p_names text[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_count integer := 0;
begin
  for v_name in
    select s.name
    from procjobs.schedules s
    where s.name <> all (p_names)
      and case p_source when 'file' then s.declared ? 'file' else s.source = p_source end
    order by s.name
  loop
    if p_source = 'file' and exists (select from procjobs.schedules s where s.name = v_name and s.source <> 'file') then
      perform procjobs.declare_schedule('file', v_name, '{}');
    else
      perform procjobs.unschedule(v_name, format('declared by %s no more', p_source));
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.forget_undeclared(text, text[]) is
  'Takes back what a source declared of schedules that are not among these: those of its own go, of others its words. Returns of how many.';

create or replace function procjobs.apply_environment(p_timezone text, p_groups jsonb)
returns text[]
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_group record;
  v_said text[] := '{}';
begin
  if p_timezone is not null and p_timezone is distinct from (select s.declared_timezone from procjobs.schedule_settings s) then
    perform procjobs.set_cron_timezone(p_timezone, 'the environment says so');
    update procjobs.schedule_settings set declared_timezone = p_timezone;
    v_said := v_said || format('time zone %s', p_timezone);
  end if;
  for v_group in
    select e.key as name, e.value::boolean as enabled
    from jsonb_each_text(coalesce(p_groups, '{}')) e
    left join procjobs.schedule_groups g on g.name = e.key
    where e.value is not null
      and e.value::boolean is distinct from g.declared
    order by e.key
  loop
    perform procjobs.set_schedule_group(v_group.name, v_group.enabled, 'the environment says so');
    update procjobs.schedule_groups g set declared = v_group.enabled where g.name = v_group.name;
    v_said := v_said || format('group %s %s', v_group.name, case when v_group.enabled then 'on' else 'off' end);
  end loop;
  return v_said;
end
$$;
comment on function procjobs.apply_environment(text, jsonb) is
  'Writes what the environment says of the default time zone and of groups ({"cleanup": false}), where it says something else than last time: '
  'what was switched in SQL since then stays. Returns what changed. Definer: the worker role has no rights on tables.';

create or replace function procjobs.register_scheduler(
  p_name text, p_host text, p_pid integer, p_version text, p_heartbeat_every interval, p_lease interval
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint := procjobs.register_worker(p_name, p_host, p_pid, p_version, '{}', '{}', 0, p_heartbeat_every, p_lease);
begin
  update procjobs.worker_state w set kind = 'scheduler' where w.id = v_id;
  return v_id;
end
$$;
comment on function procjobs.register_scheduler(text, text, integer, text, interval, interval) is
  'Makes a process known that keeps time and runs no job. Returns its id, for heartbeat and stop_worker. Definer: the worker role has no rights on tables.';
