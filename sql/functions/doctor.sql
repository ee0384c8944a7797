-- The doctor: everything that is wrong with the queue, in words, with what mends it.
-- Owns:        nothing; reads everything.
-- Lock order:  none.
-- What is wrong with the server is in doctor_server.sql; here are the jobs, the workers and the claim's index.

create or replace function procjobs.doctor_workers()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with live as (
    select w.name, w.version, string_to_array(substring(w.version from '^[0-9]+(?:\.[0-9]+)*'), '.')::integer[] as number
    from procjobs.live_workers() w
  )
  select 'warning', 'workers', 'no worker is alive, jobs wait', 'start one: procjobs worker'
  where not exists (select from live)
    and not exists (
      select from public.procrastinate_workers p where p.last_heartbeat > procjobs.clock() - interval '60 seconds'
    )
  union all
  select 'warning', 'workers',
    format('worker %s (%s, process %s) is silent since %s', w.name, w.host, w.pid, procjobs.say_time(w.last_heartbeat)),
    'look for its process and its log; if it stays silent, its jobs are given to others'
  from procjobs.worker_state w
  where w.dead_at is null
    and w.stopped_at is null
    and w.kind <> 'session'
    and w.last_heartbeat < procjobs.clock() - w.lease
  union all
  select 'warning', 'workers',
    format('worker %s (%s, process %s) died: last heard of at %s', w.name, w.host, w.pid, procjobs.say_time(w.last_heartbeat)),
    'its jobs were given to others; look into its log, and whether the system killed it for its memory'
  from procjobs.worker_state w
  where w.dead_at > procjobs.clock() - interval '1 hour'
  union all
  select 'warning', 'workers', format('worker %s runs procjobs %s, others %s', l.name, l.version, newest.version),
    'deploy the newer one there too'
  from live l
  cross join (select n.number, n.version from live n order by n.number desc nulls last limit 1) newest
  where l.number < newest.number
$$;
comment on function procjobs.doctor_workers() is 'What is wrong with the workers: none, silent, dead within the last hour, older than others.';

create or replace function procjobs.doctor_queues()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select 'warning', 'queues', format('jobs wait in queue %s, and no live worker listens to it', q.name),
    format('start one: procjobs worker --queues %s', q.name)
  from unnest(procjobs.ready_queues()) as q(name)
  where exists (select from procjobs.live_workers())
    and not exists (select from procjobs.live_workers() w where w.queues is null or q.name = any (w.queues))
  union all
  select 'warning', 'queues', format('the oldest job of %s waits for %s', q.name, procjobs.say_span(procjobs.clock() - f.since)),
    format('select procjobs.why_not_running(%s); more workers, or a higher concurrency', f.id)
  from unnest(procjobs.ready_queues()) as q(name)
  cross join lateral (
    -- The first in line: whoever waits behind it came later, or is less urgent.
    select j.id, greatest(j.pj_created_at, j.scheduled_at) as since
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for is null
      and j.queue_name = q.name
    order by j.priority desc, j.id
    limit 1
  ) f
  where f.since < procjobs.clock() - interval '5 minutes'
    and q.name <> all (procjobs.paused_queues())
  union all
  select 'warning', 'queues', format('queue %s is paused since %s by %s%s', s.name, procjobs.say_time(s.paused_at), s.paused_by, coalesce(': ' || s.pause_reason, '')),
    format('select procjobs.resume_queue(%L)', s.name)
  from procjobs.queue_settings s
  where s.paused_at < procjobs.clock() - interval '1 day'
  union all
  select 'warning', 'tasks', format('task %s is paused since %s by %s%s', s.task, procjobs.say_time(s.paused_at), s.paused_by, coalesce(': ' || s.pause_reason, '')),
    format('select procjobs.resume_task(%L)', s.task)
  from procjobs.task_settings s
  where s.paused_at < procjobs.clock() - interval '1 day'
  union all
  select 'warning', 'tasks', format('jobs wait for task %s, which no live worker knows', j.task_name),
    'start a worker that knows it, or cancel them: procjobs.cancel_jobs'
  from public.procrastinate_jobs j
  where j.status = 'todo'
    and j.pj_waits_for = 'task'
    and not exists (select from procjobs.live_workers() w where j.task_name = any (procjobs.known_tasks(w)))
  group by j.task_name
$$;
comment on function procjobs.doctor_queues() is 'What is wrong with queues and tasks: nobody listens, long waits, forgotten pauses, unknown tasks.';

create or replace function procjobs.doctor_upkeep()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select 'wrong', 'upkeep', format('%s jobs run on workers that are gone for more than a minute', count(*)),
    'upkeep is not done: start a worker or procjobs scheduler, or select procjobs.rescue_jobs(); the server''s log says if a chore fails'
  from public.procrastinate_jobs j
  left join procjobs.worker_state w on w.id = j.worker_id
  where j.status = 'doing'
    and (j.worker_id is null or j.worker_id not in (select procjobs.living_workers()))
    and coalesce(w.dead_at, w.stopped_at, j.pj_started_at) < procjobs.clock() - interval '1 minute'
  having count(*) > 0
  union all
  select 'wrong', 'upkeep', format('job %s was due at %s and is still not claimable', d.id, procjobs.say_time(d.scheduled_at)),
    'upkeep is not done: start a worker or procjobs scheduler; the server''s log says if a chore fails'
  from (
    select j.id, j.scheduled_at
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'time'
    order by j.scheduled_at
    limit 1
  ) d
  where d.scheduled_at < procjobs.clock() - interval '1 minute'
  union all
  select 'warning', 'history', 'the default partition of the history holds jobs that found no partition of their day',
    'select procjobs.ensure_history_partitions() says why; upkeep does it once a minute'
  where exists (select from procjobs.job_history_default)
  union all
  select 'warning', 'history', format('the history has no partition for %s (UTC)', n.day),
    'upkeep makes them a week ahead: start a worker, or select procjobs.ensure_history_partitions()'
  from (
    select (procjobs.clock() at time zone 'UTC')::date + a as day from generate_series(0, 1) a
  ) n
  where to_regclass('procjobs.job_history_' || to_char(n.day, 'YYYYMMDD')) is null
    and exists (select from procjobs.upkeep_state s where s.chore = 'ensure_history_partitions')
$$;
comment on function procjobs.doctor_upkeep() is 'What upkeep left undone: jobs of workers that are gone, due jobs, partitions of the history.';

create or replace function procjobs.doctor_limits()
returns table (severity text, subject text, finding text, mend text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select 'warning', 'limits', format('%s jobs wait for limit %s and none of its jobs runs%s', u.waiting, u.key,
      case when u.max_running = 0 then ': it lets none' else '' end),
    case when u.max_running = 0 then format('select procjobs.set_limit(%L, ...) with a higher max_running', u.name)
      else 'upkeep lets them go: start a worker or procjobs scheduler' end
  from procjobs.held_keys() h
  join procjobs.limit_use u on u.key = h
  where u.running = 0
    and u.resets_at is null
    and u.waiting > 0
    and exists (
      select
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'limit'
        and j.pj_held_by = h
        and greatest(j.pj_created_at, j.scheduled_at) < procjobs.clock() - interval '1 minute'
    );
end
$$;
comment on function procjobs.doctor_limits() is 'Limits for which jobs wait although none of theirs runs and no rate holds them.';

create or replace function procjobs.doctor_claim()
returns table (severity text, subject text, finding text, mend text)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_index regclass := to_regclass('public.pj_jobs_ready');
  v_size bigint := coalesce(pg_relation_size(v_index), 0);
  v_rows bigint;
begin
  return query
  select 'warning', 'claim', format('%s: %s', p.statement, p.problem), p.mend
  from procjobs.claim_plans() p
  where p.problem is not null;

  -- An entry takes 50 to 200 bytes. Counted no further than would be enough.
  if v_size > 16 * 1024 * 1024 then
    select count(*) into v_rows
    from (
      select
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
      limit v_size / 1000
    ) counted;
    if v_rows < v_size / 1000 then
      return query
      select 'warning', 'bloat', format('index %s has %s for %s claimable jobs', v_index, pg_size_pretty(v_size), v_rows),
        format('reindex index concurrently %s', v_index);
    end if;
  end if;
end
$$;
comment on function procjobs.doctor_claim() is 'What is wrong with the indexes that claim, upkeep and finish go by.';

create or replace function procjobs.doctor_triggers()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with made as (
    select t.tgname, t.tgrelid, s.spec, o.tgenabled as first_enabled, t.tgenabled,
      (
        select string_agg(c.name, ', ' order by c.name)
        from jsonb_array_elements_text(coalesce(s.spec -> 'columns', '[]') || coalesce(s.spec -> 'pass', '[]')) as c(name)
        where not exists (
          select from pg_attribute a where a.attrelid = t.tgrelid and a.attname = c.name and a.attnum > 0 and not a.attisdropped
        )
      ) as gone,
      procjobs.change_trigger_fault(s.spec ->> 'task', s.spec -> 'args', coalesce(
        array(select jsonb_array_elements_text(s.spec -> 'pass')), '{}'
      ) || case when s.spec ? 'pass' then '{}' else '{table,op,row,old}'::text[] end) as fault
    from pg_trigger t
    cross join lateral (select procjobs.change_trigger_spec(t.tgargs) as spec) s
    left join pg_trigger o on o.tgrelid = t.tgrelid and o.tgname = procjobs.first_trigger_name(t.tgname)
    where t.tgfoid = 'procjobs.enqueue_changed_row()'::regprocedure
      and t.tgparentid = 0
      and s.spec ? 'task'
  )
  select 'warning', 'on change', format('trigger %s of %s: %s', m.tgname, m.tgrelid::regclass, w.trouble),
    format('select procjobs.enqueue_on_change(%L, %L, ...) makes it anew', m.tgrelid::regclass, m.spec ->> 'task')
  from made m
  cross join lateral (
    select case
      when m.first_enabled is null then format('%s, which goes before it, is gone; no row can be changed', procjobs.first_trigger_name(m.tgname))
      when 'D' in (m.first_enabled, m.tgenabled) then 'it, or the one that goes before it, is disabled: rows change without a job'
      when m.gone is not null then format('the table has no column %s any more', m.gone)
      when m.fault is not null then format('%s (%s); no row can be changed', m.fault ->> 'message', m.fault ->> 'detail')
    end as trouble
  ) w
  where w.trouble is not null
$$;
comment on function procjobs.doctor_triggers() is
  'Triggers of enqueue_on_change that fit their table or their task no more: columns renamed, arguments changed, disabled.';

create or replace function procjobs.doctor_alerts()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with open as materialized (
    select a.*, row_number() over (partition by a.kind order by a.last_at desc, a.id desc) as n, count(*) over (partition by a.kind) as many
    from procjobs.alerts a
    where a.closed_at is null
  )
  select 'warning', 'alerts', format('%s: %s (since %s)', o.kind, o.message, procjobs.say_time(o.first_at)),
    case o.kind
      when 'missed_slot' then format(
        'something must keep time: procjobs worker, procjobs scheduler or pg_cron; to make up for them: select * from procjobs.backfill(%L, %L)',
        o.subject, o.details ->> 'first')
      when 'schedule_failing' then format('procjobs schedules show %s says why', quote_literal(o.subject))
      when 'cleanup_idle' then format('see whether its policy still finds what it is for: procjobs schedules show %s', quote_literal(o.subject))
      when 'backlog' then format('start more workers: procjobs worker --queues %s; or raise the number: procjobs.set_backlog_alert', o.subject)
      when 'no_clock' then 'start procjobs worker or procjobs scheduler, or set up pg_cron: procjobs pg-cron install'
      when 'process_down' then format('start it again; if it is not to come back: select procjobs.close_alert(%s)', o.id)
      else format('select procjobs.close_alert(%s), once it is dealt with', o.id)
    end
  from open o
  where o.n <= 10
  union all
  select 'warning', 'alerts', format('%s: %s more of them', o.kind, o.many - 10), 'procjobs alerts lists them'
  from open o
  where o.n = 11
$$;
comment on function procjobs.doctor_alerts() is 'Alerts that are open, with what to do next; of each kind the ten newest.';

create or replace function procjobs.doctor_fleet()
returns table (severity text, subject text, finding text, mend text)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.doctor_claim()
  union all
  select * from procjobs.doctor_workers()
  union all
  select * from procjobs.doctor_queues()
  union all
  select * from procjobs.doctor_upkeep()
  union all
  select * from procjobs.doctor_limits()
  union all
  select * from procjobs.doctor_triggers()
  union all
  select * from procjobs.doctor_digests()
  union all
  select * from procjobs.doctor_deliveries()
  union all
  select * from procjobs.doctor_alerts()
$$;
comment on function procjobs.doctor_fleet() is
  'What is wrong with claim, workers, queues, upkeep, limits, triggers of enqueue_on_change, digests and deliveries, and open alerts. Definer: the reader role has no rights on tables; no argument of a job is shown.';

create or replace function procjobs.doctor()
returns table (severity text, subject text, finding text, mend text)
language sql
set search_path = pg_catalog, pg_temp
as $$
  select f.severity, f.subject, f.finding, f.mend
  from (
    select * from procjobs.doctor_server()
    union all
    select * from procjobs.doctor_pg_cron()
    union all
    select * from procjobs.doctor_tables()
    union all
    select * from procjobs.doctor_fleet()
  ) f
  order by array_position('{wrong,warning,note}', f.severity), f.subject, f.finding
$$;
comment on function procjobs.doctor() is
  'Everything that is wrong, with what mends it: select * from procjobs.doctor(). No rows: all is well. severity: wrong, warning, or note for what could not be looked at.';
