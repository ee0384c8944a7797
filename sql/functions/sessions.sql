-- Sessions: SQL jobs without any worker process, run by whoever calls procjobs.run_sql_jobs: pg_cron, psql, a script.
-- Owns:        rows of worker_state of kind session; advisory locks of the class sql_lock_class('session').
-- Lock order:  worker_state by id, procrastinate_workers, then as the claim, the finish and the rescue.
-- A session lives while it holds its advisory lock, and works while it is in a transaction; PostgreSQL shows both to anybody,
-- in pg_locks. So it needs no heart that beats while a routine runs for an hour.

create or replace function procjobs.open_session(p_name text)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_id bigint;
begin
  -- What this session left behind when an earlier call ended with an error.
  for v_id in
    update procjobs.worker_state
    set dead_at = v_now
    where kind = 'session'
      and pid = pg_backend_pid()
      and dead_at is null
      and stopped_at is null
    returning id
  loop
    perform pg_advisory_unlock(procjobs.sql_lock_class('session'), (v_id % 2147483647)::integer);
  end loop;

  insert into public.procrastinate_workers (last_heartbeat)
  values (v_now)
  returning id into v_id;
  insert into procjobs.worker_state (
    id, kind, name, host, pid, version, tasks, concurrency, heartbeat_every, lease, started_at, last_heartbeat, runs_sql, login
  )
  values (
    v_id, 'session', format('%s %s', case when p_name like 'procjobs job %' then 'session' else coalesce(p_name, 'session') end, pg_backend_pid()),
    coalesce(host(inet_client_addr()), 'local'), pg_backend_pid(), 'sql',
    '{}', 1, '3 seconds', '1 minute', v_now, v_now, true, session_user
  );
  perform pg_advisory_lock(procjobs.sql_lock_class('session'), (v_id % 2147483647)::integer);
  return v_id;
end
$$;
comment on function procjobs.open_session(text) is
  'Makes this session a worker for SQL tasks, named like this and its server process; returns its id. Its advisory lock is its life. Definer: the worker role has no rights on tables.';

create or replace function procjobs.close_session(p_session bigint)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- It ran to its end and holds no job: nothing refers to it but the history, by number. A minute's session leaves no row.
  delete from procjobs.worker_state
  where id = p_session
    and kind = 'session'
    and pid = pg_backend_pid();
  delete from public.procrastinate_workers
  where id = p_session;
end
$$;
comment on function procjobs.close_session(bigint) is
  'Ends this session as a worker. Its advisory lock goes with leave_session, when that is committed. Definer: the worker role has no rights on tables.';

create or replace function procjobs.leave_session(p_session bigint)
returns boolean
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select pg_advisory_unlock(procjobs.sql_lock_class('session'), (p_session % 2147483647)::integer)
$$;
comment on function procjobs.leave_session(bigint) is 'Lets go the advisory lock of open_session. Definer: as open_session, which is granted beside it.';

create or replace function procjobs.living_sessions()
returns table (id bigint, works boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with held as materialized (
    select l.locktype, l.pid, l.database, l.classid, l.objid, l.objsubid
    from pg_locks l
    where l.granted
      and l.locktype in ('advisory', 'virtualxid')
  )
  select w.id, exists (select from held v where v.locktype = 'virtualxid' and v.pid = h.pid)
  from procjobs.worker_state w
  join held h
    on h.locktype = 'advisory'
   and h.database = (select d.oid from pg_database d where d.datname = current_database())
   and h.classid = procjobs.sql_lock_class('session')::oid
   and h.objid = ((w.id % 2147483647)::integer)::oid
   and h.objsubid = 2
   and h.pid = w.pid
  where w.kind = 'session'
    and w.dead_at is null
    and w.stopped_at is null
$$;
comment on function procjobs.living_sessions() is
  'Sessions that hold their lock, and whether each is in a transaction: an idle one has ended its call with an error.';

create or replace function procjobs.watch_sessions()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_count integer;
begin
  if not exists (select from procjobs.worker_state w where w.kind = 'session' and w.dead_at is null and w.stopped_at is null) then
    return 0;
  end if;

  with seen as materialized (
    select l.id from procjobs.living_sessions() l where l.works
  ),
  watched as (
    select w.id, s.id is not null as lives
    from procjobs.worker_state w
    left join seen s on s.id = w.id
    where w.kind = 'session'
      and w.dead_at is null
      and w.stopped_at is null
      and (s.id is null or w.suspected_at is not null or w.last_heartbeat < v_now - interval '5 seconds')
    order by w.id
    for update of w skip locked
  ),
  judged as (
    update procjobs.worker_state w
    set last_heartbeat = case when d.lives then v_now else w.last_heartbeat end,
        suspected_at = case when not d.lives then coalesce(w.suspected_at, v_now) end,
        dead_at = case when not d.lives and (w.suspected_at < v_now - w.heartbeat_every or w.last_words is not null) then v_now end
    from watched d
    where w.id = d.id
    returning w.id, d.lives, w.dead_at
  ),
  beating as (
    -- An upstream worker prunes what it has not heard of, and with it whose the jobs are.
    insert into public.procrastinate_workers as p (id, last_heartbeat)
    overriding system value
    select j.id, v_now from judged j where j.lives
    on conflict (id) do update set last_heartbeat = excluded.last_heartbeat
  )
  select count(*) filter (where j.dead_at is not null) into v_count
  from judged j;
  return v_count;
end
$$;
comment on function procjobs.watch_sessions() is
  'Looks after sessions that run SQL jobs: one without its lock, or that holds it and is idle, is suspected; still so three seconds later, or once it is known why, it is dead. Returns how many died.';

create or replace function procjobs.settle_lost_session(p_job public.procrastinate_jobs, p_session procjobs.worker_state)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_words text := p_session.last_words;
  v_raised boolean := v_words ~ '^ERROR:';
begin
  if p_job.abort_requested then
    return procjobs.settle_job(p_job, '{"outcome": "cancelled"}');
  elsif v_words is null then
    -- Errors of functions are caught; that of a procedure, which may commit, ends the call.
    v_raised := exists (
      select
      from procjobs.tasks t
      join pg_proc p on p.oid = procjobs.known_routine(t.routine)
      where t.name = p_job.task_name
        and p.prokind = 'p'
    );
    v_words := format('session %s ended while it ran this job; %s', p_session.name, case
      when v_raised then 'its procedure raised an error, or somebody ended the session: the log of the server says which'
      else 'somebody ended it, or the server stopped' end);
  end if;
  if v_raised then
    return procjobs.settle_job(p_job, jsonb_build_object(
      'outcome', 'failed', 'error_class', 'RoutineFailed',
      'error_message', regexp_replace(split_part(v_words, E'\nCONTEXT:', 1), '^ERROR:\s*', ''),
      'traceback', v_words));
  end if;
  return procjobs.settle_crash(
    p_job, jsonb_build_object('error_class', 'SessionDied', 'error_message', v_words), p_session.heartbeat_every);
end
$$;
comment on function procjobs.settle_lost_session(public.procrastinate_jobs, procjobs.worker_state) is
  'Ends the run of a session that died: as cancelled if that was wanted, as failed if its routine raised an error, else as crashed.';

create or replace function procjobs.next_sql_job(p_session bigint)
returns table (id bigint, lease integer, task text, kind text, statement text, run_as text, problem jsonb)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_args jsonb;
begin
  select c.id, c.lease, c.task_name, c.args::jsonb into id, lease, task, v_args
  from procjobs.claim_jobs(p_session, null, 1) c;
  if not found then
    return;
  end if;
  update procjobs.worker_state w
  set stop_sent_at = null
  where w.id = p_session
    and w.stop_sent_at is not null;
  select o.kind, o.statement, o.run_as, o.problem into kind, statement, run_as, problem
  from procjobs.open_sql_job(id, task, v_args) o;
  if kind = 'unknown' then
    problem := '{"outcome": "parked"}';
  elsif statement is not null then
    perform procjobs.close_sql_job(id);  -- nobody runs it any more; from here on the session's own lock says that we do
  end if;
  return next;
end
$$;
comment on function procjobs.next_sql_job(bigint) is
  'Claims one job of an SQL task for this session, and says what to run; no row when there is none. Definer: the worker role has no rights on tables.';

create or replace function procjobs.end_sql_job(p_session bigint, p_id bigint, p_lease integer, p_result jsonb, p_problem jsonb)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  c_largest constant integer := 1024 * 1024;
  v_size integer := octet_length(p_result::text);
  v_problem jsonb := p_problem;
  v_set text := coalesce(current_setting('procjobs.now', true), '');
  v_ended text;
begin
  -- The transaction began with the run; it ends now.
  perform set_config('procjobs.now', procjobs.wall_clock()::text, true);
  if v_problem ->> 'outcome' = 'stopped' then
    v_problem := v_problem || jsonb_build_object('outcome', case
      when exists (select from public.procrastinate_jobs j where j.id = p_id and j.abort_requested) then 'cancelled'
      else 'released' end);
  end if;
  for v_try in 1 .. 20 loop
    begin
      if v_problem is null then
        select 'succeeded' into v_ended
        from procjobs.finish_jobs(
          p_session, array[p_id], array[p_lease], 'archive', array[case when v_size <= c_largest then p_result end],
          array[case when v_size > c_largest then
            format('its result was not kept: it has %s bytes as JSON, at most %s are kept', v_size, c_largest) end]);
      else
        select s.result into v_ended
        from procjobs.settle_jobs(
          p_session, jsonb_build_array(v_problem || jsonb_build_object('id', p_id, 'lease', p_lease))) s;
      end if;
      exit;
    exception
      when lock_not_available then
        if v_try = 20 then
          raise;
        end if;
    end;
  end loop;
  perform set_config('procjobs.now', v_set, true);
  return coalesce(v_ended, 'stale');
end
$$;
comment on function procjobs.end_sql_job(bigint, bigint, integer, jsonb, jsonb) is
  'Ends a run of this session: with its result, or a problem as for settle_jobs; outcome stopped is a cancelled statement, whatever cancelled it. '
  'Returns what became of the job: succeeded, or what settle_jobs says. Definer: the worker role has no rights on tables.';

create or replace function procjobs.sessions_to_stop()
returns table (id bigint, pid integer)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[] := array(
    select w.id from procjobs.worker_state w where w.kind = 'session' and w.dead_at is null and w.stopped_at is null
  );
begin
  if v_ids = '{}' then
    return;
  end if;
  -- Only what was asked for in an earlier transaction: a session that is cancelled looks why, and must see it.
  return query
  select w.id, w.pid
  from procjobs.worker_state w
  where w.id in (
      select j.worker_id
      from public.procrastinate_jobs j
      where j.worker_id = any (v_ids)
        and j.status = 'doing'
        and j.abort_requested
    )
    and w.id in (select l.id from procjobs.living_sessions() l)
    and (w.stop_sent_at is null or w.stop_sent_at < procjobs.clock() - interval '5 seconds');
  perform procjobs.stop_overdue_jobs(interval '0', 1000, v_ids);
end
$$;
comment on function procjobs.sessions_to_stop() is
  'Sessions whose job somebody asked to cancel, with their server processes; and asks for those over their time, for the next call. '
  'To be called before anything else in its transaction. Definer: the worker role has no rights on tables.';

create or replace function procjobs.note_stop(p_session bigint)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.worker_state
  set stop_sent_at = procjobs.clock()
  where id = p_session
$$;
comment on function procjobs.note_stop(bigint) is 'Notes that a session was told to stop its job. Definer: the worker role has no rights on tables.';

create or replace function procjobs.stop_sessions()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_session record;
  v_count integer := 0;
begin
  for v_session in select s.id, s.pid from procjobs.sessions_to_stop() s loop
    begin
      if pg_cancel_backend(v_session.pid) then
        perform procjobs.note_stop(v_session.id);
        v_count := v_count + 1;
      end if;
    exception
      when insufficient_privilege then
        null;  -- another caller may
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.stop_sessions() is
  'Cancels what sessions run that are to stop, where the caller''s own rights allow it: those of the same user, of pg_signal_backend, of a superuser. '
  'Every worker calls it with its upkeep, and procjobs.keep_time. Returns how many.';
