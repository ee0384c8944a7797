-- Settling: a worker reports runs that ended in any other way than success.
-- Owns:        the steps doing -> todo (retry, snooze, give back), doing -> failed, doing -> cancelled, and rows of job_attempts.
-- Lock order:  procrastinate_jobs one at a time, in the order of ids; job_attempts; then the next jobs of freed locks.
-- Fenced by (job, worker, lease) like the finish.

create or replace function procjobs.retry_delay(p_run integer, p_base interval, p_cap interval, p_jitter boolean)
returns interval
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- min(cap, base * 2^(run - 1)); the exponent is bounded so that the product stays an interval.
  select w.wait * case when p_jitter then random() else 1 end
  from (
    select least(p_cap, p_base * power(2, least(greatest(p_run, 1) - 1, 20))) as wait
  ) w
$$;
comment on function procjobs.retry_delay(integer, interval, interval, boolean) is
  'The wait after run p_run failed: base doubled with each run, at most cap; with jitter drawn evenly between nothing and that. '
  'The one source of this rule.';

create or replace function procjobs.note_attempt(
  p_job public.procrastinate_jobs, p_outcome text, p_result jsonb, p_retry_at timestamptz
)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.job_attempts (
    job_id, attempt, lease, outcome, error_class, error_message, traceback, fingerprint,
    worker_id, worker_name, started_at, finished_at, retry_at
  )
  select
    p_job.id,
    p_job.attempts + 1,
    p_job.pj_lease,
    p_outcome,
    left(p_result ->> 'error_class', 500),
    left(p_result ->> 'error_message', 10000),
    left(p_result ->> 'traceback', 50000),
    procjobs.error_fingerprint(left(p_result ->> 'error_class', 500), p_result ->> 'error_message'),
    p_job.worker_id,
    (select w.name from procjobs.worker_state w where w.id = p_job.worker_id),
    p_job.pj_started_at,
    procjobs.clock(),
    p_retry_at
$$;
comment on function procjobs.note_attempt(public.procrastinate_jobs, text, jsonb, timestamptz) is
  'Writes the row of a run that did not succeed.';

create or replace function procjobs.requeue_job(
  p_job public.procrastinate_jobs, p_at timestamptz, p_attempts integer, p_crashes integer, p_result jsonb
)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update public.procrastinate_jobs
  set status = 'todo',
      worker_id = null,
      abort_requested = false,
      attempts = p_attempts,
      pj_crashes = p_crashes,
      pj_finished_at = null,
      pj_deadline = null,
      pj_cancel = null,
      scheduled_at = coalesce(p_at, scheduled_at),
      priority = coalesce((p_result ->> 'priority')::integer, priority),
      queue_name = coalesce(p_result ->> 'queue', queue_name),
      lock = coalesce(p_result ->> 'lock', lock)
  where id = p_job.id;
  return true;
exception
  when unique_violation then
    -- A waiting sibling holds the queueing lock: it does the work.
    return false;
end
$$;
comment on function procjobs.requeue_job(public.procrastinate_jobs, timestamptz, integer, integer, jsonb) is
  'Makes a running job wait again. False when a waiting job holds its queueing lock, and nothing was changed.';

create or replace function procjobs.bury_job(p_job public.procrastinate_jobs, p_attempts integer, p_crashes integer)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_awaited boolean;
begin
  update public.procrastinate_jobs
  set status = 'failed',
      attempts = p_attempts,
      pj_crashes = p_crashes,
      abort_requested = false,
      pj_fingerprint = procjobs.last_fingerprint(p_job.id),
      pj_finished_at = procjobs.clock()
  where id = p_job.id
  returning pj_awaited into v_awaited;
  if v_awaited then
    perform procjobs.announce_ends(array[p_job.id]);
  end if;
end
$$;
comment on function procjobs.bury_job(public.procrastinate_jobs, integer, integer) is 'Makes a running job a dead letter.';

create or replace function procjobs.close_job(
  p_job public.procrastinate_jobs, p_status public.procrastinate_job_status, p_reason text, p_result jsonb
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_awaited boolean;
begin
  if p_result ->> 'keep' is distinct from 'true' then
    perform procjobs.archive_job(p_job.id, p_status, p_reason);
    return;
  end if;
  update public.procrastinate_jobs
  set status = p_status,
      abort_requested = false,
      pj_finished_at = procjobs.clock(),
      pj_cancel = coalesce(pj_cancel, jsonb_build_object('reason', p_reason))
  where id = p_job.id
  returning pj_awaited into v_awaited;
  if v_awaited then
    perform procjobs.announce_ends(array[p_job.id]);
  end if;
end
$$;
comment on function procjobs.close_job(public.procrastinate_jobs, public.procrastinate_job_status, text, jsonb) is
  'Ends a running job that neither succeeded nor failed: it goes to the history or, where the worker keeps finished jobs, stays.';

create or replace function procjobs.cancel_is_wanted(p_job public.procrastinate_jobs)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_job.abort_requested and p_job.pj_cancel ->> 'timeout' is distinct from 'true'
$$;
comment on function procjobs.cancel_is_wanted(public.procrastinate_jobs) is
  'Whether somebody asked to cancel a running job, so that it does not run again. A request because of its timeout stops only this run.';

create or replace function procjobs.settle_failure(p_job public.procrastinate_jobs, p_result jsonb)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy record;
  v_runs integer := p_job.attempts + 1;
  v_max integer;
  v_at timestamptz;
begin
  if p_job.pj_limits is not null and p_result ->> 'retry' is distinct from 'never' and not procjobs.cancel_is_wanted(p_job) then
    v_at := procjobs.failed_probe(p_job);
    if v_at is not null and procjobs.requeue_job(p_job, v_at, p_job.attempts, p_job.pj_crashes, p_result) then
      perform procjobs.note_attempt(p_job, coalesce(p_result ->> 'kind', 'failed'), p_result, v_at);
      return 'retrying';
    end if;
  end if;
  select p.* into v_policy from procjobs.task_policy(p_job.task_name) p;
  v_max := coalesce(p_job.pj_max_attempts, v_policy.max_attempts);

  -- Upstream's strategies decide in Python and say when; a limit on the job itself still holds.
  if procjobs.cancel_is_wanted(p_job) or p_result ->> 'retry' = 'never' or v_runs >= v_max then
    v_at := null;
  elsif p_result ->> 'retry' = 'at' then
    v_at := coalesce((p_result ->> 'retry_at')::timestamptz, procjobs.clock());
  elsif v_max is not null then
    v_at := procjobs.clock() + procjobs.retry_delay(
      v_runs,
      coalesce(v_policy.backoff_base, interval '10 seconds'),
      coalesce(v_policy.backoff_cap, interval '1 hour'),
      coalesce(v_policy.backoff_jitter, true)
    );
    -- Whoever failed may have asked for more patience (Retry-After).
    v_at := greatest(v_at, procjobs.clock() + make_interval(secs => (p_result ->> 'not_before')::double precision));
  end if;

  if v_at is not null and not procjobs.requeue_job(p_job, v_at, v_runs, p_job.pj_crashes, p_result) then
    perform procjobs.supersede_job(p_job, p_result);
    return 'superseded';
  end if;
  perform procjobs.note_attempt(p_job, coalesce(p_result ->> 'kind', 'failed'), p_result, v_at);
  if v_at is not null then
    return 'retrying';
  end if;
  perform procjobs.bury_job(p_job, v_runs, p_job.pj_crashes);
  return 'failed';
end
$$;
comment on function procjobs.settle_failure(public.procrastinate_jobs, jsonb) is
  'A run failed: retry by the job''s limit, the task''s policy or the moment the worker names, else a dead letter. '
  'A failure after a cancel request is final. A probe that found its dependency still failing spends no attempt.';

create or replace function procjobs.supersede_job(p_job public.procrastinate_jobs, p_result jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sibling bigint;
begin
  select j.id into v_sibling
  from public.procrastinate_jobs j
  where (j.queueing_lock = p_job.queueing_lock or j.pj_waiting_key = p_job.pj_waiting_key)
    and j.status = 'todo'
  limit 1;
  perform procjobs.note_attempt(p_job, 'superseded', p_result, null);
  perform procjobs.close_job(
    p_job, 'cancelled', format('superseded: job %s waits with the same queueing lock or key', v_sibling), p_result
  );
end
$$;
comment on function procjobs.supersede_job(public.procrastinate_jobs, jsonb) is
  'Ends a job that cannot wait again because a waiting job holds its queueing lock or its key.';

create or replace function procjobs.note_stalled(p_job public.procrastinate_jobs, p_crashes integer)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into procjobs.job_events (job_id, at, type, actor, detail)
  values (p_job.id, procjobs.clock(), 'job.stalled', 'procjobs', jsonb_strip_nulls(jsonb_build_object(
    'worker', (select w.name from procjobs.worker_state w where w.id = p_job.worker_id), 'worker_id', p_job.worker_id, 'crashes', p_crashes)));
  perform pg_notify('procjobs_events', 'job.stalled ' || p_job.id);
end
$$;
comment on function procjobs.note_stalled(public.procrastinate_jobs, integer) is
  'Emits job.stalled of a job that took its worker with it too often: an event of the job, with the last worker''s name, and NOTIFY procjobs_events.';

create or replace function procjobs.settle_crash(p_job public.procrastinate_jobs, p_result jsonb, p_delay interval)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_crashes integer := p_job.pj_crashes + 1;
  v_at timestamptz := procjobs.clock() + p_delay * power(2, v_crashes - 1);
begin
  if v_crashes >= 3 or procjobs.cancel_is_wanted(p_job) then
    perform procjobs.note_attempt(p_job, 'crashed', p_result, null);
    perform procjobs.bury_job(p_job, p_job.attempts, v_crashes);
    if v_crashes >= 3 then
      perform procjobs.note_stalled(p_job, v_crashes);
    end if;
    return 'failed';
  end if;

  if procjobs.requeue_job(p_job, v_at, p_job.attempts, v_crashes, '{}') then
    perform procjobs.note_attempt(p_job, 'crashed', p_result, v_at);
    return 'retrying';
  end if;
  perform procjobs.supersede_job(p_job, p_result);
  return 'superseded';
end
$$;
comment on function procjobs.settle_crash(public.procrastinate_jobs, jsonb, interval) is
  'A run ended because its process died: it waits p_delay (doubled with each crash) and runs again; the third crash is the last, and job.stalled. '
  'Spends no attempt of the task''s own policy.';

create or replace function procjobs.settle_job(p_job public.procrastinate_jobs, p_result jsonb)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome text := p_result ->> 'outcome';
  v_at timestamptz;
begin
  if v_outcome = 'cancelled' and p_job.abort_requested and not procjobs.cancel_is_wanted(p_job) then
    return procjobs.settle_failure(p_job, p_result || jsonb_build_object(
      'error_class', 'JobTimeout', 'error_message', 'it ran longer than its timeout; its worker was asked to stop it'));
  end if;
  case v_outcome
    when 'failed' then
      return procjobs.settle_failure(p_job, p_result);
    when 'crashed' then
      return procjobs.settle_crash(p_job, p_result, interval '10 seconds');
    when 'cancelled', 'discarded' then
      perform procjobs.note_attempt(p_job, v_outcome, p_result, null);
      update public.procrastinate_jobs set attempts = attempts + 1 where id = p_job.id;
      perform procjobs.close_job(
        p_job,
        case when v_outcome = 'cancelled' then 'aborted' else 'cancelled' end::public.procrastinate_job_status,
        coalesce(p_result ->> 'reason', p_job.pj_cancel ->> 'reason'),
        p_result
      );
      return v_outcome;
    when 'snoozed' then
      v_at := procjobs.clock() + make_interval(secs => (p_result ->> 'delay')::double precision);
    when 'released', 'parked' then
      v_at := null;
    else
      raise exception 'a run cannot end as %', quote_nullable(v_outcome)
        using errcode = 'PJ009',
              detail = format('reported for job %s, lease %s', p_job.id, p_job.pj_lease),
              hint = 'One of failed, crashed, cancelled, discarded, snoozed, released, parked.';
  end case;

  if procjobs.cancel_is_wanted(p_job) then
    -- Somebody asked to cancel it: it does not go back to waiting.
    perform procjobs.note_attempt(p_job, 'cancelled', p_result, null);
    perform procjobs.close_job(p_job, 'aborted', p_job.pj_cancel ->> 'reason', p_result);
    return 'cancelled';
  end if;
  if not procjobs.requeue_job(p_job, v_at, p_job.attempts, p_job.pj_crashes, p_result) then
    perform procjobs.supersede_job(p_job, p_result);
    return 'superseded';
  end if;
  if v_outcome = 'parked' then
    update public.procrastinate_jobs set pj_waits_for = 'task' where id = p_job.id;
  elsif v_outcome = 'snoozed' or p_result ->> 'started' = 'true' then
    perform procjobs.note_attempt(p_job, v_outcome, p_result, v_at);
  end if;
  return v_outcome;
end
$$;
comment on function procjobs.settle_job(public.procrastinate_jobs, jsonb) is
  'Ends one run as the worker reports it; snoozing and giving back spend no attempt.';

create or replace function procjobs.settle_jobs(p_worker bigint, p_results jsonb)
returns table (id bigint, result text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
set enable_seqscan = off
set jit = off
as $$
declare
  v_result jsonb;
  v_job public.procrastinate_jobs;
  v_locks text[] := '{}';
begin
  for v_result in
    select r.value
    from jsonb_array_elements(p_results) r
    order by (r.value ->> 'id')::bigint
  loop
    id := (v_result ->> 'id')::bigint;
    select j.* into v_job
    from public.procrastinate_jobs j
    where j.id = (v_result ->> 'id')::bigint
      and j.worker_id = p_worker
      and j.pj_lease = (v_result ->> 'lease')::integer
      and j.status = 'doing'
    for update;

    if not found then
      result := 'stale';
    else
      result := procjobs.settle_job(v_job, v_result);
      if v_result ->> 'delete' = 'true' and result in ('failed', 'cancelled', 'discarded', 'superseded') then
        delete from public.procrastinate_jobs j where j.id = v_job.id;
        delete from procjobs.job_history h where h.id = v_job.id;
      end if;
      if v_job.lock is not null then
        v_locks := v_locks || v_job.lock;
      end if;
    end if;
    return next;
  end loop;

  if cardinality(v_locks) > 0 then
    perform procjobs.promote_locks(v_locks);
  end if;
end
$$;
comment on function procjobs.settle_jobs(bigint, jsonb) is
  'Ends runs that did not succeed. Each element: {"id", "lease", "outcome": failed | crashed | cancelled | discarded | snoozed | released | parked, ...}, '
  '"delete": true forgets a job that will not run again, "keep": true leaves it in the job table. '
  'Returns for each what became of the job: retrying, failed, superseded, cancelled, discarded, snoozed, released, parked, or stale (the lease was lost). '
  'Definer: the worker role has no rights on tables.';
