-- Alerts: what somebody should look at; one open row for a kind and subject.
-- Owns:        procjobs.alerts.
-- Lock order:  alerts by kind and subject.

create or replace function procjobs.raise_alert(p_kind text, p_subject text, p_message text, p_details jsonb default '{}')
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_new boolean;
begin
  insert into procjobs.alerts as a (kind, subject, message, details, first_at, last_at)
  values (p_kind, p_subject, p_message, p_details, procjobs.clock(), procjobs.clock())
  on conflict (kind, subject) where closed_at is null do update
    set message = excluded.message,
        details = excluded.details,
        last_at = excluded.last_at,
        times = a.times + 1
  returning a.times = 1 into v_new;
  if v_new then
    perform pg_notify('procjobs_alerts', left(p_kind || ' ' || p_subject, 1000));
  end if;
  return v_new;
end
$$;
comment on function procjobs.raise_alert(text, text, text, jsonb) is
  'Opens an alert, or says that it was found again. True: it is new, and announced by NOTIFY procjobs_alerts. '
  'The message holds no arguments and no error texts: readers see it.';

create or replace function procjobs.close_alerts(p_kinds text[], p_subjects text[], p_by text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  if p_subjects = '{}' then
    return 0;
  end if;
  update procjobs.alerts a
  set closed_at = procjobs.clock(), closed_by = p_by
  where a.id in (
    select o.id
    from procjobs.alerts o
    where o.closed_at is null
      and o.kind = any (p_kinds)
      and (p_subjects is null or o.subject = any (p_subjects))
    order by o.kind, o.subject
    for update
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.close_alerts(text[], text[], text) is 'Closes the open alerts of kinds and subjects (null: all subjects). Returns how many.';

create or replace function procjobs.close_alert(alert bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update procjobs.alerts a
  set closed_at = procjobs.clock(), closed_by = session_user
  where a.id = alert
    and a.closed_at is null;
  return found;
end
$$;
comment on function procjobs.close_alert(bigint) is
  'Closes an alert that somebody dealt with; it comes back if it is found again. False if it was closed. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.set_backlog_alert(integer, text[]);
create or replace function procjobs.set_backlog_alert(waiting integer, queues text[] default null, reason text default null)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(reason);
begin
  if coalesce(waiting, 0) < 1 or array_position(queues, null) > 0 then
    raise exception 'an alert at % waiting jobs cannot be', coalesce(waiting::text, 'null')
      using errcode = 'PJ009',
            detail = 'it is a number of at least 1, and names of queues',
            hint = 'select procjobs.set_backlog_alert(1000, array[''notifications'']);';
  end if;
  update procjobs.schedule_settings s
  set backlog_limit = waiting,
      backlog_queues = coalesce(queues, s.backlog_queues);
  perform procjobs.give_reason(v_why);
end
$$;
comment on function procjobs.set_backlog_alert(integer, text[], text) is
  'Raises an alert when more jobs than this wait in one of these queues (null: those it was; out of the box notifications, 1000). The reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';

create or replace function procjobs.watch_backlog()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_limit integer := (select s.backlog_limit from procjobs.schedule_settings s);
  v_queue text;
  v_count integer;
begin
  for v_queue in
    select q from procjobs.schedule_settings s, unnest(s.backlog_queues) q order by q
  loop
    select count(*) into v_count
    from (
      select
      from public.procrastinate_jobs j
      where j.queue_name = v_queue
        and j.status = 'todo'
        and j.pj_waits_for is null
      union all
      -- What a limit or a breaker holds back waits, too.
      select
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'limit'
        and j.queue_name = v_queue
      limit v_limit + 1
    ) waiting;
    if v_count > v_limit then
      perform procjobs.raise_alert('backlog', v_queue, format('more than %s jobs wait in queue %s', v_limit, v_queue),
        jsonb_build_object('limit', v_limit));
    else
      perform procjobs.close_alerts(array['backlog'], array[v_queue], 'fewer jobs wait');
    end if;
  end loop;
  perform procjobs.close_alerts(array['backlog'], array(
    select a.subject
    from procjobs.alerts a
    where a.kind = 'backlog' and a.closed_at is null
      and a.subject <> all (select unnest(s.backlog_queues) from procjobs.schedule_settings s)
  ), 'not watched any more');
end
$$;
comment on function procjobs.watch_backlog() is 'Opens and closes the alerts of queues in which too many jobs wait.';

create or replace function procjobs.watch_clocks()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_due timestamptz := (select min(s.due_at) from procjobs.schedules s where s.due_at is not null);
begin
  if v_due < procjobs.clock() - interval '2 minutes' then
    perform procjobs.raise_alert('no_clock', 'schedules',
      format('schedules have been due since %s and nobody fires them', procjobs.say_time(v_due)), jsonb_build_object('since', v_due));
  else
    perform procjobs.close_alerts(array['no_clock'], null, 'a clock ticks again');
  end if;
end
$$;
comment on function procjobs.watch_clocks() is 'Opens an alert when schedules are due and no clock fires them, and closes it.';

create or replace function procjobs.is_wanted(p_task text)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
      select from public.procrastinate_jobs j where j.status = 'todo' and j.pj_waits_for = 'task' and j.task_name = p_task
    )
    or exists (
      select
      from procjobs.schedules s
      where s.task = p_task
        and s.paused_at is null
        and s.undeclared_at is null
    )
$$;
comment on function procjobs.is_wanted(text) is
  'Whether jobs wait for somebody who knows this task, or a schedule will make some.';

create or replace function procjobs.lost_processes()
returns table (name text, host text, kind text, died_at timestamptz)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Another that came later and does the same work is its successor. So is, after a minute, one that knows fewer tasks,
  -- as after a deploy that took some away: by then it has claimed, and jobs of tasks that nobody knows are parked. While
  -- there is one, or a schedule will make one, that task is still wanted.
  with known as materialized (
    select array_agg(distinct n) as tasks
    from procjobs.living_processes() l
    cross join lateral unnest(procjobs.known_tasks(l)) n
  )
  select distinct on (w.name) w.name, w.host, w.kind, w.dead_at
  from procjobs.worker_state w
  where w.dead_at is not null
    and w.kind <> 'session'
    and not exists (
      select
      from procjobs.worker_state o
      where o.dead_at is null
        and (
          o.name = w.name
          or o.started_at > w.last_heartbeat and o.kind = w.kind and o.queues is not distinct from w.queues and (
            o.tasks @> w.tasks
            or o.stopped_at is null and o.started_at < procjobs.clock() - interval '1 minute' and not exists (
              select
              from known k
              cross join lateral unnest(w.tasks) as t (name)
              where t.name <> all (coalesce(k.tasks, '{}'))
                and procjobs.is_wanted(t.name)
            )
          )
        )
    )
  order by w.name, w.dead_at desc
$$;
comment on function procjobs.lost_processes() is 'Workers and schedulers that died, did not leave in order, and that nobody has come after.';

create or replace function procjobs.watch_processes()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_alert('process_down', l.name,
    format('%s %s on %s died at %s and nobody has taken its place', l.kind, l.name, l.host, procjobs.say_time(l.died_at)),
    jsonb_build_object('died_at', l.died_at, 'host', l.host))
  from procjobs.lost_processes() l
  where not exists (
    select from procjobs.alerts a where a.kind = 'process_down' and a.subject = l.name and (a.closed_at is null or a.closed_at > l.died_at)
  )
  order by l.name;
  perform procjobs.close_alerts(array['process_down'], array(
    select a.subject
    from procjobs.alerts a
    where a.kind = 'process_down'
      and a.closed_at is null
      and not exists (select from procjobs.lost_processes() l where l.name = a.subject)
      and exists (select from procjobs.worker_state w where w.name = a.subject)
  ), 'another has taken its place');
  -- forget_workers() has forgotten it: a week is long enough to look.
  perform procjobs.close_alerts(array['process_down'], array(
    select a.subject
    from procjobs.alerts a
    where a.kind = 'process_down'
      and a.closed_at is null
      and not exists (select from procjobs.worker_state w where w.name = a.subject)
  ), 'it is gone for seven days');
end
$$;
comment on function procjobs.watch_processes() is
  'Opens an alert for each lost process, and closes it when another has come. One that somebody closed does not come back.';
