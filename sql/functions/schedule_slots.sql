-- The slots of a schedule, and which of them fire. Owns nothing, locks nothing.
-- A cron goes by wall time in the schedule's zone (cron.sql), an interval by elapsed time: anchor + n * every.

create or replace function procjobs.cron_timezone()
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.timezone from procjobs.schedule_settings s
$$;
comment on function procjobs.cron_timezone() is 'The time zone of schedules that name none. Definer: views ask it for readers, who have no rights on tables.';

create or replace function procjobs.schedule_next(p_schedule procjobs.schedules, p_after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_every numeric := extract(epoch from p_schedule.every);
  v_passed numeric;
begin
  if p_schedule.cron is not null then
    return procjobs.cron_next(p_schedule.cron, coalesce(p_schedule.timezone, procjobs.cron_timezone()), p_after);
  end if;
  v_passed := extract(epoch from p_after) - extract(epoch from p_schedule.anchor);
  return p_after + make_interval(secs => (v_every - mod(mod(v_passed, v_every) + v_every, v_every))::double precision);
end
$$;
comment on function procjobs.schedule_next(procjobs.schedules, timestamptz) is 'The first slot of a schedule after an instant.';

create or replace function procjobs.schedule_slots(
  p_schedule procjobs.schedules, p_after timestamptz, p_until timestamptz, p_at_most integer
)
returns timestamptz[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_every numeric := extract(epoch from p_schedule.every);
  v_first timestamptz;
  v_count bigint;
begin
  if p_schedule.cron is not null then
    return array(
      select s
      from procjobs.cron_slots(
        p_schedule.cron, coalesce(p_schedule.timezone, procjobs.cron_timezone()), p_after, p_until, p_at_most) s
    );
  end if;
  v_first := procjobs.schedule_next(p_schedule, p_after);
  v_count := div(extract(epoch from p_until) - extract(epoch from v_first), v_every) + 1;
  return case when v_first > p_until then '{}' else array(
    select v_first + make_interval(secs => (v_every * n)::double precision)
    from generate_series(greatest(0, v_count - p_at_most), v_count - 1) n
    order by n
  ) end;
end
$$;
comment on function procjobs.schedule_slots(procjobs.schedules, timestamptz, timestamptz, integer) is
  'The slots of a schedule after an instant and until another, oldest first: the last p_at_most of them.';

create or replace function procjobs.unfinished_job(p_schedule text, p_waiting boolean)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_ids bigint[];
begin
  -- In the order of the index of open rows, so that the plan goes by it and not through all slots of the schedule.
  v_ids := array(
    select t.job_id
    from procjobs.schedule_ticks t
    where t.schedule = p_schedule and t.kind = 'slot' and t.job_id is not null and t.ended_at is null
    order by t.job_id
  ) || array(
    select r.job_id
    from procjobs.schedule_runs r
    where r.schedule = p_schedule and r.job_id is not null and r.ended_at is null
    order by r.job_id
  );
  if v_ids = '{}' then
    return null;
  end if;
  return (
    select j.id
    from public.procrastinate_jobs j
    where j.id = any (v_ids)
      and (j.status = 'todo' or j.status = 'doing' and not p_waiting)
    limit 1
  );
end
$$;
comment on function procjobs.unfinished_job(text, boolean) is
  'A job of a schedule that has not ended (p_waiting: that still waits); those of a backfill do not count. Null: none.';

create or replace function procjobs.expand_schedule(
  p_schedule procjobs.schedules,
  p_now timestamptz,
  out slots timestamptz[],
  out reasons text[],
  out next_slot timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_most integer := greatest(1000, p_schedule.catch_up);
  v_from timestamptz := greatest(p_schedule.last_slot, p_now - p_schedule.misfire_window);
  v_first timestamptz;
  v_overlap text;
begin
  -- Nearly always: one slot, the one that was waited for.
  next_slot := case when p_schedule.due_at = p_schedule.next_slot and p_schedule.next_slot <= p_now
    then procjobs.schedule_next(p_schedule, p_schedule.next_slot) end;
  if next_slot > p_now and p_schedule.next_slot > v_from then
    slots := array[p_schedule.next_slot];
  else
    slots := procjobs.schedule_slots(p_schedule, v_from, p_now, v_most);
    next_slot := procjobs.schedule_next(p_schedule, p_now);
  end if;
  reasons := procjobs.misfire_reasons(p_schedule, p_now, slots);

  if array_position(reasons, null) is not null and p_schedule.overlap <> 'allow' then
    v_overlap := 'overlap: job ' || procjobs.unfinished_job(p_schedule.name, p_schedule.overlap = 'queue')
      || case p_schedule.overlap when 'queue' then ' waits already' else ' has not ended' end;
    reasons := case when v_overlap is not null then array(
      select coalesce(r.reason, v_overlap) from unnest(reasons) with ordinality r (reason, n) order by r.n
    ) else reasons end;
  end if;

  -- What is older is not looked at one by one: one row for all of it.
  if cardinality(slots) = v_most or v_from > p_schedule.last_slot then
    v_first := procjobs.schedule_next(p_schedule, p_schedule.last_slot);
    if v_first <= p_now and v_first < coalesce(slots[1], p_now + interval '1 second') then
      slots := v_first || slots;
      reasons := format('%s: all slots until %s, not looked at one by one',
        case when cardinality(slots) > v_most then 'too many' else 'older than ' || p_schedule.misfire_window end,
        procjobs.say_time(greatest(v_first, coalesce(slots[2] - interval '1 second', v_from)))) || reasons;
    end if;
  end if;
end
$$;
comment on function procjobs.expand_schedule(procjobs.schedules, timestamptz) is
  'The slots of a schedule that are due, oldest first, with why each of them is skipped (null: it fires), and the first slot after now.';

create or replace function procjobs.misfire_reasons(p_schedule procjobs.schedules, p_now timestamptz, p_slots timestamptz[])
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- A slot is not skipped for being a few seconds late, whatever the policy.
  select coalesce(array_agg(
    case
      when p_now - u.slot <= least(p_schedule.grace, interval '10 seconds') then null
      when p_schedule.misfire = 'all' and cardinality(p_slots) - u.n < p_schedule.catch_up then null
      when p_schedule.misfire = 'latest' and u.n = cardinality(p_slots) then null
      when p_schedule.misfire = 'skip' and p_now - u.slot <= p_schedule.grace then null
      when u.slot <= p_schedule.held_until then 'held off: it was paused or switched off'
      when p_schedule.misfire = 'skip' then 'missed: misfire is skip'
      when p_schedule.misfire = 'latest' then 'missed: only the latest is made up for'
      else format('missed: only the last %s are made up for', p_schedule.catch_up)
    end order by u.n), '{}')
  from unnest(p_slots) with ordinality u (slot, n)
$$;
comment on function procjobs.misfire_reasons(procjobs.schedules, timestamptz, timestamptz[]) is
  'For each due slot why it is skipped; null: it fires.';

create or replace function procjobs.slot_arguments(p_schema jsonb, p_args jsonb, p_values jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_schema -> 'properties') = 'object' and jsonb_typeof(p_args) = 'object' then coalesce((
      select jsonb_object_agg(v.key, v.value)
      from jsonb_each(p_values) v
      where p_schema -> 'properties' ? v.key
        and v.value <> 'null'
    ), '{}') || p_args
    else p_args
  end
$$;
comment on function procjobs.slot_arguments(jsonb, jsonb, jsonb) is
  'Arguments of a job, with those values filled in that its task takes and the schedule does not give.';

create or replace function procjobs.schedule_job(p_schedule procjobs.schedules, p_slot timestamptz, p_values jsonb)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'task', p_schedule.task,
    'queue', p_schedule.queue,
    'priority', p_schedule.priority,
    'tenant', p_schedule.tenant,
    'tags', p_schedule.tags,
    'max_attempts', p_schedule.max_attempts,
    'timeout', extract(epoch from p_schedule.timeout),
    'lock', coalesce(p_schedule.lock, (select t.lock from procjobs.tasks t where t.name = p_schedule.task), case when p_schedule.overlap <> 'allow' then 'schedule:' || left(p_schedule.name, 200) end),
    'queueing_lock', p_schedule.queueing_lock,
    'scheduled_at', procjobs.jittered(p_schedule.name, p_slot, p_schedule.jitter)
  )) || jsonb_build_object('args', procjobs.slot_arguments(
    (select t.args_schema from procjobs.tasks t where t.name = p_schedule.task),
    p_schedule.args,
    jsonb_build_object(
      'slot', to_char(p_slot at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
      'timestamp', floor(extract(epoch from p_slot)),
      'tenant', p_schedule.tenant
    ) || p_values))
$$;
comment on function procjobs.schedule_job(procjobs.schedules, timestamptz, jsonb) is
  'The job of a slot, as an element of defer_many''s array. p_values: further values for arguments that the task takes.';

create or replace function procjobs.jittered(p_name text, p_slot timestamptz, p_jitter interval)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case when j.at > procjobs.clock() then j.at end
  from (
    select p_slot + p_jitter * ((hashtextextended(p_name || ' ' || extract(epoch from p_slot), 0) & 1048575) / 1048576.0) as at
  ) j
  where p_jitter > interval '0'
$$;
comment on function procjobs.jittered(text, timestamptz, interval) is
  'When the job of a slot is due: its slot and a part of the jitter, drawn from its name and slot. Null: at once.';
