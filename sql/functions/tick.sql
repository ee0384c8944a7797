-- The clock: fires the slots of schedules that are due, each once, whoever ticks and however many do at once.
-- Owns:        schedule_ticks of kind slot; last_slot, next_slot, due_at and fault of schedules.
-- Lock order:  schedules, skipping locked rows, then new rows of schedule_ticks, then as enqueue.sql says, then alerts by kind and subject.
-- A slot is a row of the ledger before it is a job, in one transaction. Schedules go in batches: one statement for all of them,
-- and, only where that fails, one by one, so that a bad one harms nobody. No lock is waited for longer than lock_timeout says.
-- A row of the ledger is looked up by `between row(...) and row(...)`: only its primary key can do that. With two equalities
-- the plan may go by the index of slots, through all schedules that fire at the same instant.

create or replace function procjobs.living_processes()
returns setof procjobs.worker_state
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select w.*
  from procjobs.worker_state w
  where w.dead_at is null
    and w.stopped_at is null
    and w.kind <> 'session'
    and w.last_heartbeat >= procjobs.clock() - w.lease
$$;
comment on function procjobs.living_processes() is 'Workers and schedulers that were heard of within their lease.';

create or replace function procjobs.park_undeclared(p_due_only boolean)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_declared text[];
  v_count integer;
begin
  if p_due_only and not exists (
    select from procjobs.schedules s where s.due_at <= procjobs.clock() and s.source in ('code', 'periodic')
  ) then
    return 0;
  end if;
  select array_agg(distinct n) into v_declared
  from procjobs.living_processes() w
  left join lateral unnest(w.schedules) n on true;
  if v_declared is null then
    return 0;  -- no process lives at all: another clock goes on with what they declared last
  end if;
  update procjobs.schedules s
  set undeclared_at = procjobs.clock(), due_at = null
  where s.name in (
    select p.name
    from procjobs.schedules p
    where p.source in ('code', 'periodic')
      and p.parent is null
      and p.undeclared_at is null
      and (not p_due_only or p.due_at <= procjobs.clock())
      and array_position(v_declared, p.name) is null
    for update skip locked
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.park_undeclared(boolean) is
  'Holds schedules off that came from code and that no living process has in its code any more (p_due_only: those that are due). Returns how many.';

create or replace function procjobs.forget_schedules()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
  v_why text;
begin
  perform procjobs.park_undeclared(false);
  v_why := procjobs.give_reason('nobody declared it for seven days');
  delete from procjobs.schedules s
  where s.source in ('code', 'periodic')
    and s.undeclared_at < procjobs.clock() - interval '7 days';
  get diagnostics v_count = row_count;
  perform procjobs.give_reason(v_why);
  return v_count;
end
$$;
comment on function procjobs.forget_schedules() is 'Deletes schedules that nobody has declared for seven days; their history stays. Returns how many.';

create or replace function procjobs.plan_slots(p_names text[], p_now timestamptz)
returns table (name text, slot timestamptz, reason text, missed boolean, next_slot timestamptz, periodic boolean)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  return query
  select
    s.name, u.slot, u.reason,
    coalesce(p_now - u.slot > s.grace and u.slot > coalesce(s.held_until, '-infinity'), false),
    e.next_slot, s.source = 'periodic'
  from procjobs.schedules s
  cross join lateral procjobs.expand_schedule(s, p_now) e
  left join lateral unnest(e.slots, e.reasons) u (slot, reason) on true
  where s.name = any (p_names);
end
$$;
comment on function procjobs.plan_slots(text[], timestamptz) is
  'The due slots of schedules, and why some are skipped; one row with a null slot for a schedule that has none.';

create or replace function procjobs.fire_schedules(p_names text[], p_by text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_plan jsonb;
  v_names text[];
  v_slots timestamptz[];
  v_jobs jsonb;
  v_fired integer;
  v_periodic record;
begin
  select jsonb_agg(to_jsonb(p)) into v_plan from procjobs.plan_slots(p_names, v_now) p;

  with plan as materialized (
    select * from jsonb_to_recordset(v_plan) as p (name text, slot timestamptz, reason text, missed boolean, periodic boolean)
  ),
  written as (
    insert into procjobs.schedule_ticks (schedule, slot, outcome, reason, missed, fired_at, fired_by)
    select p.name, p.slot, case when p.reason is null then 'fired' else 'skipped' end, p.reason, p.missed, v_now, p_by
    from plan p
    where p.slot is not null
    order by p.name, p.slot
    on conflict do nothing
    returning schedule, schedule_ticks.slot, outcome
  ),
  job as (
    select w.schedule, w.slot, procjobs.schedule_job(s, w.slot, '{"manual": false, "triggered_by": "schedule"}') as job
    from written w
    join procjobs.schedules s on s.name = w.schedule
    where w.outcome = 'fired'
      and s.source <> 'periodic'
  )
  select array_agg(j.schedule order by j.slot, j.schedule), array_agg(j.slot order by j.slot, j.schedule), jsonb_agg(j.job order by j.slot, j.schedule)
  into v_names, v_slots, v_jobs
  from job j;

  v_fired := coalesce(procjobs.enqueue_slots(v_names, v_slots, v_jobs), 0);
  for v_periodic in
    select s as schedule, t.slot
    from jsonb_to_recordset(v_plan) as p (name text, slot timestamptz, reason text, periodic boolean)
    join procjobs.schedules s on s.name = p.name
    join procjobs.schedule_ticks t on row(t.schedule, t.slot) between row(p.name, p.slot) and row(p.name, p.slot) and t.fired_at = v_now
    where p.periodic and p.reason is null and t.outcome = 'fired' and t.job_id is null
    order by t.slot, p.name
  loop
    v_fired := v_fired + procjobs.fire_periodic(v_periodic.schedule, v_periodic.slot);
  end loop;

  update procjobs.schedules s
  set last_slot = greatest(s.last_slot, p.slot),
      next_slot = p.next_slot,
      due_at = p.next_slot,
      fault = null
  from (
    select p.name, max(p.slot) as slot, min(p.next_slot) as next_slot
    from jsonb_to_recordset(v_plan) as p (name text, slot timestamptz, next_slot timestamptz)
    group by p.name
  ) p
  where s.name = p.name;
  perform procjobs.judge_slots(v_plan, v_now);
  return v_fired;
end
$$;
comment on function procjobs.fire_schedules(text[], text) is
  'Fires the due slots of schedules that the caller has locked: ledger, jobs, and where each of them goes on. Returns how many slots fired. '
  'One that cannot be enqueued fails all of them.';

create or replace function procjobs.enqueue_slots(p_names text[], p_slots timestamptz[], p_jobs jsonb)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_fault jsonb;
  v_count integer;
begin
  if p_jobs is null then
    return 0;
  end if;
  select f.fault into v_fault
  from jsonb_array_elements(p_jobs) j
  left join procjobs.tasks t on t.name = j ->> 'task'
  cross join lateral (
    select case when t.name is null then procjobs.unknown_task_fault(j ->> 'task')
      else procjobs.argument_fault(t.name, t.args_schema, j -> 'args') end as fault
  ) f
  where f.fault is not null
  limit 1;
  perform procjobs.raise_fault(v_fault);

  with new as materialized (
    select u.name, u.slot, i.id, i.duplicate
    from procjobs.insert_jobs(p_jobs) i
    join unnest(p_names, p_slots) with ordinality as u (name, slot, n) on u.n = i.ordinal
  ),
  written as (
    update procjobs.schedule_ticks t
    set job_id = case when not n.duplicate then n.id end,
        outcome = case when n.duplicate then 'skipped' else t.outcome end,
        reason = case when n.duplicate then format('job %s is the same, and has not ended', n.id) else t.reason end
    from new n
    where row(t.schedule, t.slot) between row(n.name, n.slot) and row(n.name, n.slot)
    returning n.duplicate
  )
  select count(*) filter (where not w.duplicate) into v_count from written w;
  return v_count;
end
$$;
comment on function procjobs.enqueue_slots(text[], timestamptz[], jsonb) is
  'Enqueues the jobs of slots that are in the ledger, and writes their ids there. Returns how many are new. Arguments that do not fit: as procjobs.defer.';

create or replace function procjobs.fire_periodic(p_schedule procjobs.schedules, p_slot timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_job jsonb := procjobs.schedule_job(p_schedule, p_slot, '{}');
  v_task procjobs.tasks;
  v_id bigint;
begin
  select t.* into v_task from procjobs.tasks t where t.name = p_schedule.task;
  v_job := jsonb_set(v_job, '{args,timestamp}', to_jsonb(extract(epoch from p_slot)::bigint));
  v_id := procjobs.defer_periodic(
    p_schedule.task, p_schedule.periodic_id, extract(epoch from p_slot)::bigint, coalesce(p_schedule.queue, v_task.queue, 'default'),
    coalesce(p_schedule.priority, v_task.priority, 0), p_schedule.lock, p_schedule.queueing_lock, v_job ->> 'args');
  update procjobs.schedule_ticks t
  set job_id = v_id,
      outcome = case when v_id is null then 'skipped' else 'fired' end,
      reason = case when v_id is null then 'this slot or a later one was deferred already: procrastinate_periodic_defers' end
  where row(t.schedule, t.slot) between row(p_schedule.name, p_slot) and row(p_schedule.name, p_slot);
  return case when v_id is null then 0 else 1 end;
end
$$;
comment on function procjobs.fire_periodic(procjobs.schedules, timestamptz) is
  'Fires a slot of one of Procrastinate''s periodic tasks so that Procrastinate''s own workers beside ours see that it was. Returns 1, or 0 if they were first.';

create or replace function procjobs.judge_slots(p_plan jsonb, p_now timestamptz)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_late record;
begin
  for v_late in
    select p.name, count(*) as slots, min(p.slot) as first, max(p.slot) as last
    from jsonb_to_recordset(p_plan) as p (name text, slot timestamptz, missed boolean)
    where p.missed
    group by p.name
    order by p.name
  loop
    perform procjobs.raise_alert(
      'missed_slot', v_late.name,
      format('%s of %s: nobody fired %s in time', case when v_late.slots = 1 then 'a slot' else v_late.slots || ' slots' end, v_late.name,
        case when v_late.slots = 1 then 'it' else 'them' end),
      jsonb_build_object('slots', v_late.slots, 'first', v_late.first, 'last', v_late.last, 'fired_at', p_now));
  end loop;
  perform procjobs.close_alerts(array['missed_slot'], array(
    select p.name
    from jsonb_to_recordset(p_plan) as p (name text, slot timestamptz, missed boolean)
    where p.slot is not null
    group by p.name
    having not bool_or(p.missed)
  ), 'the next slot came in time');
end
$$;
comment on function procjobs.judge_slots(jsonb, timestamptz) is 'Raises an alert for schedules with slots that were missed, and closes it for those that are in time again.';

create or replace function procjobs.fire_alone(p_name text, p_by text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state text;
  v_message text;
  v_detail text;
begin
  return procjobs.fire_schedules(array[p_name], p_by);
exception
  when lock_not_available or deadlock_detected or serialization_failure then
    return null;
  when others then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail;
    perform procjobs.refuse_slots(p_name, p_by, v_state, concat_ws(': ', v_message, nullif(v_detail, '')));
    return 0;
end
$$;
comment on function procjobs.fire_alone(text, text) is
  'Fires the due slots of one schedule; what cannot be enqueued is written down as refused. Null: somebody holds a lock that it needs, try again.';

create or replace function procjobs.refuse_slots(p_name text, p_by text, p_state text, p_message text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_busy boolean := p_state = 'PJ006' or p_state = '23505';
  v_next timestamptz;
  v_last timestamptz;
begin
  begin
    insert into procjobs.schedule_ticks (schedule, slot, outcome, reason, missed, fired_at, fired_by)
    select p.name, p.slot, case when p.reason is null and not v_busy then 'refused' else 'skipped' end,
      coalesce(p.reason, case when v_busy then 'a job with its queueing lock waits already' else p_message end), p.missed, v_now, p_by
    from procjobs.plan_slots(array[p_name], v_now) p
    where p.slot is not null
    on conflict do nothing;
    select max(p.slot), min(p.next_slot) into v_last, v_next from procjobs.plan_slots(array[p_name], v_now) p;
  exception
    when others then
      -- Its slots cannot even be computed. The one that is due is known, and stands for those after it.
      p_state := sqlstate;
      p_message := sqlerrm;
      v_busy := false;
      insert into procjobs.schedule_ticks (schedule, slot, outcome, reason, missed, fired_at, fired_by)
      select s.name, s.next_slot, 'refused', p_message || ': this slot and all until it can be read again',
        v_now - s.next_slot > s.grace, v_now, p_by
      from procjobs.schedules s
      where s.name = p_name
        and s.next_slot <= v_now
      on conflict do nothing
      returning slot into v_last;
  end;
  update procjobs.schedules s
  set last_slot = greatest(s.last_slot, v_last),
      next_slot = v_next,
      due_at = v_next,
      fault = case when not v_busy then p_message end
  where s.name = p_name;
  if not v_busy then
    perform procjobs.raise_alert(
      'schedule_failing', p_name, case
        when v_next is null then format('%s fires nothing: its times cannot be read (%s)', p_name, p_state)
        else format('%s: a slot could not be enqueued (%s)', p_name, p_state)
      end,
      jsonb_build_object('sqlstate', p_state, 'at', v_now));
  end if;
end
$$;
comment on function procjobs.refuse_slots(text, text, text, text) is
  'Writes down that the due slots of a schedule could not be enqueued, and why; the schedule goes on with its next one. '
  'Where no next one can be computed it is faulty, and retry_schedules() looks again.';

create or replace function procjobs.retry_schedules()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row procjobs.schedules;
  v_next timestamptz;
  v_count integer := 0;
begin
  for v_row in
    select s.*
    from procjobs.schedules s
    where s.next_slot is null
      and procjobs.schedule_hold(s) = 'faulty'
    order by s.name
    for update skip locked
  loop
    begin
      v_next := procjobs.schedule_next(v_row, v_row.last_slot);
      update procjobs.schedules s set next_slot = v_next, due_at = v_next, fault = null where s.name = v_row.name;
      v_count := v_count + 1;
    exception
      when others then
        perform procjobs.raise_alert(
          'schedule_failing', v_row.name, format('%s fires nothing: its times cannot be read (%s)', v_row.name, sqlstate),
          jsonb_build_object('sqlstate', sqlstate, 'at', procjobs.clock()));
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.retry_schedules() is
  'Lets faulty schedules go on whose times can be read again, as after an upgrade of the zones; slots meanwhile are treated by their misfire. '
  'Of the others the alert stays open, whatever runs by hand say. Returns how many go on.';

create or replace function procjobs.tick_schedules(
  p_by text default session_user,
  p_max integer default 1000,
  out fired integer,
  out due_in double precision
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set lock_timeout = '300ms'
as $$
declare
  v_busy text[] := '{}';
  v_names text[];
  v_name text;
  v_seen integer := 0;
  v_count integer;
begin
  fired := 0;
  perform procjobs.park_undeclared(true);
  loop
    v_names := array(
      select s.name
      from procjobs.schedules s
      where s.due_at <= procjobs.clock()
        and s.name <> all (v_busy)
      order by s.due_at
      limit least(100, p_max - v_seen)
      for update skip locked
    );
    exit when v_names = '{}';
    v_seen := v_seen + cardinality(v_names);
    begin
      fired := fired + procjobs.fire_schedules(v_names, p_by);
    exception
      when others then
        foreach v_name in array v_names loop
          v_count := procjobs.fire_alone(v_name, p_by);
          fired := fired + coalesce(v_count, 0);
          v_busy := v_busy || case when v_count is null then array[v_name] end;
        end loop;
    end;
    exit when v_seen >= p_max;
  end loop;
  select extract(epoch from s.due_at - procjobs.wall_clock()) into due_in
  from procjobs.schedules s
  where s.due_at is not null
  order by s.due_at
  limit 1;
end
$$;
comment on function procjobs.tick_schedules(text, integer) is
  'Fires what is due, of at most p_max schedules: how many slots fired, and the seconds until the next one is due (null: none). '
  'Workers and schedulers call it; any number at once, each slot fires once. Definer: the worker role has no rights on tables.';

create or replace function procjobs.tick(by text default session_user)
returns integer
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.fired from procjobs.tick_schedules(tick.by, 100000) t
$$;
comment on function procjobs.tick(text) is
  'Fires every slot that is due, and returns how many: what a clock calls, pg_cron for example. Any number of clocks may, each slot fires once. '
  'by: how the ledger names this clock. Definer: the worker role has no rights on tables.';
