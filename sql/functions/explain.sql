-- Explaining: where a job is, how it got there, and why it does not run.
-- Owns:        nothing; reads everything.
-- Lock order:  none.
-- What shows arguments or error texts reads the views with the caller's own rights, so that it shows no more than they do.

create or replace function procjobs.may_see_arguments()
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(pg_has_role(current_user, r.oid, 'usage')), false)
  from pg_roles r
  where r.rolname = 'procjobs_admin'
     or r.oid = (select n.nspowner from pg_namespace n where n.nspname = 'procjobs')
$$;
comment on function procjobs.may_see_arguments() is
  'Whether the caller may see arguments and error texts: members of procjobs_admin, the owner, superusers. The views ask once a query.';

create or replace function procjobs.say_time(p_at timestamptz)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
$$;
comment on function procjobs.say_time(timestamptz) is 'A time in words, in UTC.';

create or replace function procjobs.say_span(p_span interval)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when s < 60 then format('%s s', s)
    when s < 3600 then format('%s min', s / 60)
    when s < 86400 then format('%s h %s min', s / 3600, s % 3600 / 60)
    else format('%s d %s h', s / 86400, s % 86400 / 3600)
  end
  from (select ceil(extract(epoch from p_span))::bigint as s) seconds
$$;
comment on function procjobs.say_span(interval) is 'A length of time in words: 45 s, 3 min, 2 h 5 min, 4 d 1 h.';

create or replace function procjobs.live_workers()
returns setof procjobs.worker_state
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select w.*
  from procjobs.worker_state w
  where w.dead_at is null
    and w.stopped_at is null
    and w.draining_at is null
    and w.kind <> 'scheduler'
    and w.last_heartbeat >= procjobs.clock() - w.lease
$$;
comment on function procjobs.live_workers() is 'Workers that claim jobs: registered, not leaving, heard of within their lease.';

create or replace function procjobs.known_tasks(p_worker procjobs.worker_state)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_worker.runs_sql then p_worker.tasks || procjobs.runnable_sql_tasks(p_worker.login)
    else p_worker.tasks
  end
$$;
comment on function procjobs.known_tasks(procjobs.worker_state) is
  'The tasks a worker knows: its own, and the SQL tasks that its login may run.';

create or replace function procjobs.lock_reason(p_job public.procrastinate_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_other public.procrastinate_jobs;
begin
  if p_job.lock is null then
    return null;
  end if;

  select o.* into v_other
  from public.procrastinate_jobs o
  where o.lock = p_job.lock
    and o.status = 'doing';
  if found then
    return format('lock %s is held by job %s, running since %s on worker %s', quote_literal(p_job.lock), v_other.id,
      procjobs.say_time(v_other.pj_started_at),
      coalesce((select w.name from procjobs.worker_state w where w.id = v_other.worker_id), v_other.worker_id::text, 'unknown'));
  end if;

  select o.* into v_other
  from public.procrastinate_jobs o
  where o.lock = p_job.lock
    and o.status = 'todo'
    and (o.pj_waits_for is null or o.pj_waits_for = 'lock')
    and (o.priority > p_job.priority or o.priority = p_job.priority and o.id < p_job.id)
    and o.queue_name <> all (procjobs.paused_queues())
  order by o.priority desc, o.id
  limit 1;
  if found then
    return format('job %s goes first on lock %s, waiting since %s', v_other.id, quote_literal(p_job.lock),
      procjobs.say_time(greatest(v_other.pj_created_at, v_other.scheduled_at)));
  end if;
  return null;
end
$$;
comment on function procjobs.lock_reason(public.procrastinate_jobs) is
  'Which job holds up this one on its lock, in words; null if none does.';

create or replace function procjobs.worker_reason(p_job public.procrastinate_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_live integer;
  v_listening integer;
  v_knowing integer;
  v_able integer;
  v_slots integer;
  v_taken integer;
begin
  select
    count(*), count(*) filter (where listens), count(*) filter (where knows), count(*) filter (where listens and knows),
    sum(concurrency) filter (where listens and knows), sum(running) filter (where listens and knows)
  into v_live, v_listening, v_knowing, v_able, v_slots, v_taken
  from (
    select
      w.queues is null or p_job.queue_name = any (w.queues) as listens,
      p_job.task_name = any (procjobs.known_tasks(w)) as knows,
      w.concurrency,
      (select count(*) from public.procrastinate_jobs j where j.worker_id = w.id and j.status = 'doing') as running
    from procjobs.live_workers() w
  ) judged;

  if v_able = 0 and exists (
    -- A worker of upstream's does not say what it listens to and knows.
    select
    from public.procrastinate_workers p
    where p.last_heartbeat > procjobs.clock() - interval '60 seconds'
      and not exists (select from procjobs.worker_state w where w.id = p.id)
  ) then
    return null;
  end if;
  return case
    when v_live = 0 then 'no worker is alive: start one with procjobs worker'
    when v_listening = 0 then format('no live worker listens to queue %s', p_job.queue_name)
    when v_knowing = 0 then coalesce(
      (
        select format('no live worker may run SQL task %s: %s registered it%s', t.name, t.registered_by, ' to run as ' || t.run_as)
        from procjobs.tasks t
        where t.name = p_job.task_name
          and t.routine is not null
      ),
      format('no live worker knows task %s', p_job.task_name))
    when v_able = 0 then format('no live worker both listens to queue %s and knows task %s', p_job.queue_name, p_job.task_name)
    when v_taken >= v_slots then format('all %s slots of its workers are taken', v_slots)
  end;
end
$$;
comment on function procjobs.worker_reason(public.procrastinate_jobs) is
  'Why no worker could take this job now, in words; null if one could.';

create or replace function procjobs.limit_reason(p_job public.procrastinate_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_use record;
begin
  if p_job.pj_waits_for is distinct from 'limit' then
    return null;
  elsif p_job.pj_held_by like 'breaker:%' then
    return coalesce(procjobs.breaker_reason(p_job), 'its breaker is closed: the next round of upkeep lets it go');
  end if;
  select l.name, l.key, l.max_running, l.per, l.rate_counts, r.room, r.counted, r.resets_at, s.key as met,
    (select count(*) from procjobs.limit_grants g where g.key = s.key) as running
  into v_use
  from procjobs.limit_state s
  join procjobs.limits l on l.name = s.limit_name
  cross join lateral procjobs.limit_room(array[s.key], procjobs.clock()) r
  where s.key = p_job.pj_held_by;
  if not found then
    return 'its limit was removed: the next round of upkeep lets it go';
  end if;

  return concat_ws(', ',
    format('limit %s is reached%s', v_use.name, case
      when v_use.key in ('tenant', 'lock') then format(' for %s %s', v_use.key, substr(v_use.met, length(v_use.name) + 2))
      when v_use.key is not null then format(' for its %s', v_use.key) end),
    case when v_use.running >= v_use.max_running then format('%s of %s run', v_use.running, v_use.max_running) end,
    case when v_use.resets_at is not null then format(
      '%s %s within %s, the next may at %s', v_use.counted, case v_use.rate_counts when 'runs' then 'run or ended' else 'started' end,
      procjobs.say_span(v_use.per), procjobs.say_time(v_use.resets_at)) end,
    case when v_use.room > 0 then 'there is room again: the next round of upkeep lets it go' end);
end
$$;
comment on function procjobs.limit_reason(public.procrastinate_jobs) is 'Which limit or breaker a job waits for, in words; null if it waits for none.';

create or replace function procjobs.waiting_in_words(p_job public.procrastinate_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_pause procjobs.queue_settings;
  v_halt procjobs.task_settings;
  v_reasons text[];
  v_ahead integer;
begin
  select s.* into v_pause
  from procjobs.queue_settings s
  where s.name = p_job.queue_name
    and s.paused_at is not null;
  select s.* into v_halt
  from procjobs.task_settings s
  where s.task = p_job.task_name
    and s.paused_at is not null;

  v_reasons := array_remove(array[
    case
      when p_job.scheduled_at = 'infinity' then 'not due until somebody gives it a time'
      when p_job.scheduled_at > v_now then format(
        'not due until %s, in %s%s', procjobs.say_time(p_job.scheduled_at), procjobs.say_span(p_job.scheduled_at - v_now),
        case when p_job.attempts + p_job.pj_crashes > 0
          then format(' (%s runs failed, %s crashed)', p_job.attempts, p_job.pj_crashes) else '' end)
    end,
    case when v_pause.name is not null then format(
      'queue %s was paused by %s at %s%s', v_pause.name, v_pause.paused_by, procjobs.say_time(v_pause.paused_at),
      coalesce(': ' || v_pause.pause_reason, '')) end,
    procjobs.lock_reason(p_job),
    case when v_halt.task is not null then format(
      'task %s was paused by %s at %s%s', v_halt.task, v_halt.paused_by, procjobs.say_time(v_halt.paused_at),
      coalesce(': ' || v_halt.pause_reason, '')) end,
    procjobs.limit_reason(p_job),
    procjobs.worker_reason(p_job)
  ], null);
  if v_reasons <> '{}' then
    return array_to_string(v_reasons, '; ');
  end if;

  select count(*) into v_ahead
  from (
    select
    from public.procrastinate_jobs o
    where o.queue_name = p_job.queue_name
      and o.status = 'todo'
      and o.pj_waits_for is null
      and (o.priority > p_job.priority or o.priority = p_job.priority and o.id < p_job.id)
    limit 1000
  ) ahead;
  return format('ready: a worker will take it, %s before it in queue %s',
    case v_ahead when 0 then 'no job' when 1 then '1 job' when 1000 then '1000 jobs or more' else v_ahead || ' jobs' end,
    p_job.queue_name);
end
$$;
comment on function procjobs.waiting_in_words(public.procrastinate_jobs) is 'why_not_running for a job that waits: every reason there is.';

create or replace function procjobs.running_in_words(p_job public.procrastinate_jobs)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws('; ',
    format('it is running: since %s (%s), run %s, on worker %s', procjobs.say_time(p_job.pj_started_at),
      procjobs.say_span(procjobs.clock() - p_job.pj_started_at), p_job.attempts + 1,
      coalesce(format('%s (%s, process %s)', w.name, w.host, w.pid), p_job.worker_id::text, 'unknown')),
    case when p_job.abort_requested then concat_ws(': ',
      format('%s asked to stop it at %s', coalesce(p_job.pj_cancel ->> 'by', 'somebody'),
        coalesce(procjobs.say_time((p_job.pj_cancel ->> 'at')::timestamptz), 'an unknown time')),
      p_job.pj_cancel ->> 'reason') end,
    case
      when w.dead_at is not null or w.stopped_at is not null then 'that worker is gone: the next rescue gives the job to another'
      when w.last_heartbeat < procjobs.clock() - w.lease
        then format('that worker was last heard of at %s: if it stays silent, the job is given to another', procjobs.say_time(w.last_heartbeat))
    end)
  from (select) one
  left join procjobs.worker_state w on w.id = p_job.worker_id
$$;
comment on function procjobs.running_in_words(public.procrastinate_jobs) is 'why_not_running for a job that runs.';

create or replace function procjobs.why_not_running(job_id bigint)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_id bigint := job_id;
  v_job public.procrastinate_jobs;
  v_end procjobs.job_history;
begin
  select j.* into v_job from public.procrastinate_jobs j where j.id = v_id;
  if found then
    return case v_job.status
      when 'todo' then procjobs.waiting_in_words(v_job)
      when 'doing' then procjobs.running_in_words(v_job)
      when 'failed' then format('it failed for good at %s after %s runs and %s crashes: select procjobs.retry(%s) lets it run again',
        coalesce(procjobs.say_time(v_job.pj_finished_at), 'an unknown time'), v_job.attempts, v_job.pj_crashes, v_id)
      else format('it is over: %s at %s', v_job.status, coalesce(procjobs.say_time(v_job.pj_finished_at), 'an unknown time'))
    end;
  end if;

  select h.* into v_end from procjobs.job_history h where h.id = v_id order by h.finished_at desc limit 1;
  if not found then
    perform procjobs.raise_job_not_found(v_id);
  end if;
  return format('it is over: %s at %s%s', v_end.status, procjobs.say_time(v_end.finished_at), coalesce(' (' || v_end.note || ')', ''));
end
$$;
comment on function procjobs.why_not_running(bigint) is
  'Why a job does not run, in words: not due until, queue or task paused (by whom, why), lock held by, limit reached (until when), breaker open (until when), no live worker knows the task or listens to the queue, all slots taken, over already; or ready. '
  'Unknown id: PJ007. Definer: the reader role has no rights on tables; arguments and error texts are not shown.';
