-- Control: what people do to jobs and queues.
-- Owns:        procjobs.queue_settings; job_events of types cancelled, cancel_requested, retried.
-- Lock order:  queue_settings; procrastinate_jobs (one job), job_history, then the next jobs of a freed lock.
-- Whoever does it is session_user, since functions that run with the owner's rights are the only way in.

create or replace function procjobs.note_action(p_job_id bigint, p_type text, p_detail jsonb)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.job_events (job_id, at, type, actor, detail)
  values (p_job_id, procjobs.clock(), p_type, session_user, jsonb_strip_nulls(p_detail))
$$;
comment on function procjobs.note_action(bigint, text, jsonb) is 'Writes who did what to a job.';

create or replace function procjobs.raise_job_not_found(p_job_id bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'there is no job %', coalesce(p_job_id::text, 'null')
    using errcode = 'PJ007',
          detail = 'neither among waiting and running jobs nor in the history',
          hint = 'Finished jobs leave the history when their retention is over; select * from procjobs.jobs order by id desc limit 20 lists the newest.';
end
$$;
comment on function procjobs.raise_job_not_found(bigint) is 'Raises PJ007.';

create or replace function procjobs.cancel(job_id bigint, reason text default null)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_id bigint := job_id;
  v_reason text := left(reason, 1000);
  v_job public.procrastinate_jobs;
  v_cancel jsonb := jsonb_strip_nulls(jsonb_build_object('by', session_user, 'at', procjobs.clock(), 'reason', v_reason));
begin
  -- Waits for a claim or a finish that is under way, and then sees what it did.
  select j.* into v_job
  from public.procrastinate_jobs j
  where j.id = v_id
  for update;

  if not found then
    if not exists (select from procjobs.job_history h where h.id = v_id) then
      perform procjobs.raise_job_not_found(v_id);
    end if;
    return 'finished';
  elsif v_job.status = 'todo' then
    update public.procrastinate_jobs set pj_cancel = v_cancel where id = v_id;
    perform procjobs.archive_job(v_id, 'cancelled', coalesce(v_reason, 'cancelled by ' || session_user));
    perform procjobs.note_action(v_id, 'cancelled', jsonb_build_object('reason', v_reason));
    return 'cancelled';
  elsif v_job.status = 'doing' then
    if not v_job.abort_requested or v_job.pj_cancel ->> 'timeout' = 'true' then
      -- Upstream's trigger tells the worker by NOTIFY; its heartbeat sees it in any case.
      update public.procrastinate_jobs
      set abort_requested = true, pj_cancel = v_cancel
      where id = v_id;
      perform procjobs.note_action(v_id, 'cancel_requested', jsonb_build_object('reason', v_reason));
    end if;
    return 'requested';
  end if;
  return 'finished';
end
$$;
comment on function procjobs.cancel(bigint, text) is
  'Cancels a job. Returns cancelled (it was waiting and will not run), requested (it runs: its worker is asked to stop it) or finished (too late, nothing was done). '
  'The first request''s reason is kept. Unknown id: PJ007. Definer: the admin role has no rights on tables.';

create or replace function procjobs.retry(job_id bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_id bigint := job_id;
  v_job public.procrastinate_jobs;
  v_was text;
begin
  select j.* into v_job
  from public.procrastinate_jobs j
  where j.id = v_id
  for update;

  if not found then
    v_was := procjobs.retry_from_history(v_id);
    if v_was is null then
      -- Somebody else may have taken it from the history just now.
      if not exists (select from public.procrastinate_jobs j where j.id = v_id) then
        perform procjobs.raise_job_not_found(v_id);
      end if;
      return false;
    end if;
  elsif v_job.status = 'doing' then
    raise exception 'job % is running', v_id
      using errcode = 'PJ008',
            detail = format('since %s, by worker %s', procjobs.say_time(v_job.pj_started_at), v_job.worker_id),
            hint = format('Wait until it has ended, or select procjobs.cancel(%s) first.', v_id);
  elsif v_job.status = 'todo' and v_job.pj_waits_for is distinct from 'time' then
    return false;
  else
    v_was := case when v_job.status = 'todo' then 'scheduled' else v_job.status::text end;
    if v_was = 'succeeded' then
      perform procjobs.note_success(
        v_id, v_job.attempts, v_job.pj_lease, v_job.worker_id, v_job.pj_started_at, v_job.pj_finished_at);
    end if;
    update public.procrastinate_jobs
    set status = 'todo',
        scheduled_at = procjobs.clock(),
        abort_requested = false,
        attempts = case when v_was = 'scheduled' then attempts else 0 end,
        pj_crashes = case when v_was = 'scheduled' then pj_crashes else 0 end,
        worker_id = null,
        pj_cancel = null,
        pj_result = null,
        pj_finished_at = null
    where id = v_id;
    perform procjobs.wake_queues(array[v_job.queue_name::text]);
  end if;
  perform procjobs.note_action(v_id, 'retried', jsonb_build_object('was', v_was));
  return true;
exception
  when unique_violation then
    perform procjobs.raise_retry_conflict(v_id);
    return false;
end
$$;
comment on function procjobs.retry(bigint) is
  'Makes a failed job (or one from the history) wait again, now, with all its attempts; a job that waits for a later time or retry is due now, its attempts as they are. '
  'False if it waits anyway. Running: PJ008. Unknown: PJ007. A waiting job with the same queueing lock: PJ006; a job with the same unique key: PJ008. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.note_success(
  p_job_id bigint, p_attempt integer, p_lease integer, p_worker bigint, p_started_at timestamptz, p_finished_at timestamptz
)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.job_attempts (job_id, attempt, lease, outcome, worker_id, worker_name, started_at, finished_at)
  values (
    p_job_id, p_attempt, p_lease, 'succeeded', p_worker, (select w.name from procjobs.worker_state w where w.id = p_worker),
    p_started_at, p_finished_at)
$$;
comment on function procjobs.note_success(bigint, integer, integer, bigint, timestamptz, timestamptz) is
  'Writes the row of a run that succeeded, of a job that is made to run again.';

create or replace function procjobs.retry_from_history(p_job_id bigint)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_was record;
begin
  perform set_config('procjobs.args_checked', 'on', true);
  with taken as (
    delete from procjobs.job_history h
    where h.id = p_job_id
    returning h.*
  ),
  back as (
    -- The lease goes on counting: a worker that still holds an old one stays fenced off.
    insert into public.procrastinate_jobs (
      id, queue_name, task_name, priority, lock, queueing_lock, pj_unique_key, args, pj_tags, pj_max_attempts, pj_lease, pj_created_at,
      pj_tenant, pj_timeout, pj_waiting_key
    )
    select
      t.id, t.queue_name, t.task_name, t.priority, t.lock, t.queueing_lock, t.unique_key, t.args, t.tags, t.max_attempts, t.lease, t.created_at,
      t.tenant, t.timeout, t.waiting_key
    from taken t
    order by t.finished_at desc
    limit 1
  )
  select t.status::text, t.attempts, t.lease, t.worker_id, t.started_at, t.finished_at into v_was
  from taken t
  order by t.finished_at desc
  limit 1;
  perform set_config('procjobs.args_checked', '', true);
  if v_was.status = 'succeeded' then
    perform procjobs.note_success(p_job_id, v_was.attempts, v_was.lease, v_was.worker_id, v_was.started_at, v_was.finished_at);
  end if;
  return v_was.status;
end
$$;
comment on function procjobs.retry_from_history(bigint) is
  'Moves a job from the history back among the waiting ones. Returns the status it had there; null if it is not there.';

create or replace function procjobs.raise_retry_conflict(p_job_id bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_queueing_lock text;
  v_unique_key text;
  v_other bigint;
begin
  select k.queueing_lock, k.unique_key into v_queueing_lock, v_unique_key
  from (
    select j.queueing_lock, coalesce(j.pj_unique_key, j.pj_waiting_key) as unique_key from public.procrastinate_jobs j where j.id = p_job_id
    union all
    select h.queueing_lock, coalesce(h.unique_key, h.waiting_key) from procjobs.job_history h where h.id = p_job_id
  ) k
  limit 1;

  perform procjobs.raise_fault(procjobs.waiting_job_fault(v_queueing_lock));
  select j.id into v_other
  from public.procrastinate_jobs j
  where j.pj_unique_key = v_unique_key and j.status in ('todo', 'doing')
     or j.pj_waiting_key = v_unique_key and j.status = 'todo';
  raise exception 'job % cannot wait again: another job has its unique key', p_job_id
    using errcode = 'PJ008',
          detail = format('job %s has the unique key %s', coalesce(v_other::text, 'that ended just now'), quote_nullable(v_unique_key)),
          hint = 'That job does the work; retry when it has ended, if there is still need.';
end
$$;
comment on function procjobs.raise_retry_conflict(bigint) is
  'Raises why a job cannot wait again: PJ006 for its queueing lock, PJ008 for its unique key.';

create or replace function procjobs.pause_queue(queue text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed boolean;
begin
  if coalesce(length(queue), 0) not between 1 and 128 then
    raise exception 'a queue name is required'
      using errcode = 'PJ010',
            detail = format('the name has %s characters, it must have 1 to 128', coalesce(length(queue), 0)),
            hint = 'select name from procjobs.queues lists the queues there are.';
  end if;

  insert into procjobs.queue_settings as q (name, paused_at, paused_by, pause_reason)
  values (queue, procjobs.clock(), session_user, left(reason, 1000))
  on conflict (name) do update
    set paused_at = excluded.paused_at,
        paused_by = excluded.paused_by,
        pause_reason = excluded.pause_reason
    where q.paused_at is null
  returning true into v_changed;
  return coalesce(v_changed, false);
end
$$;
comment on function procjobs.pause_queue(text, text) is
  'Stops workers from claiming jobs of a queue until resume_queue; running jobs go on. '
  'Returns false if it was paused already (its first reason is kept). Definer: the admin role has no rights on tables.';

drop function if exists procjobs.resume_queue(text);
create or replace function procjobs.resume_queue(queue text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(reason);
  v_found boolean;
begin
  update procjobs.queue_settings
  set paused_at = null, paused_by = null, pause_reason = null
  where name = queue
    and paused_at is not null;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if not v_found then
    return false;
  end if;

  -- While it was paused its jobs did not hold up others on their locks, nor were they next in line.
  perform procjobs.sweep_locks();
  perform procjobs.wake_queues(array[queue]);
  return true;
end
$$;
comment on function procjobs.resume_queue(text, text) is
  'Lets workers claim jobs of a paused queue again, at once; the reason goes to procjobs.setting_log. Returns false if it was not paused. '
  'Definer: the admin role has no rights on tables.';
