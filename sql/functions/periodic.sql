-- Procrastinate's periodic tasks: each slot once, and never an older slot after a newer one. They are schedules (tick.sql),
-- whose slots are also noted where Procrastinate's own workers look. due_periodic is for workers of the release before.
-- Owns:        procrastinate_periodic_defers.
-- Lock order:  an advisory lock on (task, periodic id), procrastinate_periodic_defers, then the new job.

create or replace function procjobs.defer_periodic(
  p_task text,
  p_periodic_id text,
  p_timestamp bigint,
  p_queue text,
  p_priority integer,
  p_lock text,
  p_queueing_lock text,
  p_args text
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_last bigint;
  v_job bigint;
begin
  perform pg_advisory_xact_lock(hashtext('procjobs.periodic'), hashtext(p_task || ':' || p_periodic_id));
  select max(d.defer_timestamp) into v_last
  from public.procrastinate_periodic_defers d
  where d.task_name = p_task
    and d.periodic_id = p_periodic_id;
  -- Upstream forgets older slots and so defers them again for a worker that was asleep.
  if v_last >= p_timestamp then
    return null;
  end if;

  select e into v_job
  from procjobs.enqueue_jobs(
    array[p_task], array[p_queue], array[p_priority], array[p_lock], array[p_queueing_lock],
    array[p_args], array[null::timestamptz]
  ) e;
  delete from public.procrastinate_periodic_defers
  where task_name = p_task
    and periodic_id = p_periodic_id;
  insert into public.procrastinate_periodic_defers (task_name, periodic_id, defer_timestamp, job_id)
  values (p_task, p_periodic_id, p_timestamp, v_job);
  return v_job;
end
$$;
comment on function procjobs.defer_periodic(text, text, bigint, text, integer, text, text, text) is
  'Defers the job of one slot (epoch seconds) of a periodic task; null when this slot or a later one was deferred already. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.last_periodic(p_task text, p_periodic_id text)
returns bigint
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select max(d.defer_timestamp)
  from public.procrastinate_periodic_defers d
  where d.task_name = p_task
    and d.periodic_id = p_periodic_id
$$;
comment on function procjobs.last_periodic(text, text) is
  'The last slot (epoch seconds) of a periodic task that was deferred, by any worker. Definer: the worker role has no rights on tables.';

create or replace function procjobs.due_slots(
  p_cron text,
  p_timezone text,
  p_last timestamptz,
  p_max_delay interval,
  out slots bigint[],
  out next_in double precision,
  out fault text
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_hint text;
begin
  -- Of a periodic task that never fired only the newest slot: it is not known how long it exists.
  select coalesce(array_agg(extract(epoch from s)::bigint order by s), '{}') into slots
  from procjobs.cron_slots(
    p_cron, p_timezone, greatest(p_last, v_now - p_max_delay), v_now,
    case when p_last is null then 1 else 10000 end
  ) s;
  next_in := extract(epoch from procjobs.cron_next(p_cron, p_timezone, v_now) - v_now);
exception
  when sqlstate 'PJ014' then
    get stacked diagnostics fault = message_text, v_hint = pg_exception_detail;
    fault := fault || ': ' || v_hint;
end
$$;
comment on function procjobs.due_slots(text, text, timestamptz, interval) is
  'The slots (epoch seconds, oldest first) of one periodic task that are due since its last one, the seconds until the next, '
  'or what is wrong with its cron or time zone.';

create or replace function procjobs.due_periodic(
  p_tasks text[],
  p_periodic_ids text[],
  p_crons text[],
  p_timezones text[],
  p_since bigint[],
  p_max_delay double precision
)
returns table (slots bigint[], next_in double precision, fault text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.slots, d.next_in, d.fault
  from unnest(p_tasks, p_periodic_ids, p_crons, p_timezones, p_since)
    with ordinality as u (task, periodic_id, cron, timezone, since, n)
  cross join lateral procjobs.due_slots(
    u.cron, u.timezone,
    to_timestamp(greatest(u.since, procjobs.last_periodic(u.task, u.periodic_id))),
    make_interval(secs => p_max_delay)
  ) d
  order by u.n
$$;
comment on function procjobs.due_periodic(text[], text[], text[], text[], bigint[], double precision) is
  'For each periodic task: the slots to defer now, the seconds until the next one, or why it never fires. p_since: the last slot the worker '
  'itself dealt with, or null; slots older than p_max_delay seconds are left out. Definer: the worker role has no rights on tables.';

create or replace function procjobs.job_status(p_job_id bigint)
returns setof public.procrastinate_job_status
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  (select j.status from public.procrastinate_jobs j where j.id = p_job_id)
  union all
  (select h.status from procjobs.job_history h where h.id = p_job_id)
  limit 1
$$;
comment on function procjobs.job_status(bigint) is
  'Upstream''s status of a job, wherever it is now; no row for an unknown id. Definer: the producer role has no rights on tables.';
