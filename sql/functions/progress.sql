-- Progress and results: how far a running job has come, and what an ended one returned.
-- Owns:        procjobs.job_progress; procrastinate_jobs.pj_awaited.
-- Lock order:  one row of job_progress, or one of procrastinate_jobs.
-- Nobody pays for a waiter that is not there: the end of a job is announced only where pj_awaited is set.

create or replace function procjobs.check_percent(p_percent double precision)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_percent not between 0 and 100 then
    raise exception 'progress cannot be % percent', p_percent
      using errcode = 'PJ009',
            detail = 'it lies between 0 and 100',
            hint = 'Pass null with a message where there is no number.';
  end if;
end
$$;
comment on function procjobs.check_percent(double precision) is 'Raises PJ009 for a percentage that is none.';

create or replace function procjobs.report_progress(
  p_job_id bigint, p_lease integer, p_percent double precision, p_message text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  perform procjobs.check_percent(p_percent);
  -- `is not distinct from` keeps the planner on the primary key, as in finish.sql.
  if not exists (
    select
    from public.procrastinate_jobs j
    where j.id = p_job_id
      and j.pj_lease = p_lease
      and j.status is not distinct from 'doing'
  ) then
    return false;
  end if;

  insert into procjobs.job_progress as p (job_id, lease, percent, message, reported_at)
  values (p_job_id, p_lease, p_percent, left(p_message, 1000), procjobs.clock())
  on conflict (job_id) do update
  set lease = excluded.lease,
      percent = excluded.percent,
      message = excluded.message,
      reported_at = excluded.reported_at
  where p.lease <= excluded.lease;
  return found;
end
$$;
comment on function procjobs.report_progress(bigint, integer, double precision, text) is
  'Notes how far a running job has come, in percent and words. False, and nothing noted, when the lease is not the current one. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.progress(percent double precision, message text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_job text[] := string_to_array(nullif(current_setting('procjobs.job', true), ''), '/');
begin
  perform procjobs.check_percent(progress.percent);
  if v_job is null then
    return false;
  elsif current_setting('procjobs.reports', true) = 'notice' then
    -- The worker hears it at once and writes it down over another connection: it is seen before this transaction ends.
    raise info using errcode = '01PJ1',
                     message = jsonb_build_object('percent', progress.percent, 'message', left(progress.message, 1000))::text;
    return true;
  end if;
  return procjobs.report_progress(v_job[1]::bigint, v_job[2]::integer, progress.percent, progress.message);
end
$$;
comment on function procjobs.progress(double precision, text) is
  'Called in the routine of an SQL task: how far it has come, in percent (null: no number) and words. In a worker it is seen at once, '
  'in procjobs.run_sql_jobs from the next commit on. False, and nothing noted, where no job runs. '
  'Definer: the role as which the routine runs has no rights on tables.';

create or replace function procjobs.forget_progress()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.job_progress p
  where p.reported_at < procjobs.clock() - interval '7 days'
    and not exists (
      select
      from public.procrastinate_jobs j
      where j.id = p.job_id
        and j.status = 'doing'
    );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_progress() is 'Deletes reports older than seven days of jobs that do not run. Returns how many.';

create or replace function procjobs.announce_ends(p_ids bigint[])
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select pg_notify('procjobs_ended', id::text) from unnest(p_ids) id
$$;
comment on function procjobs.announce_ends(bigint[]) is 'Tells those who wait for these jobs that they have ended, by NOTIFY on the channel procjobs_ended.';

create or replace function procjobs.job_outcome(job_id bigint)
returns table (status text, ended boolean, result jsonb, error_class text, error_message text, note text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_id bigint := job_id;
begin
  select j.status::text, j.status not in ('todo', 'doing'), j.pj_result, coalesce(j.pj_cancel ->> 'note', j.pj_cancel ->> 'reason')
  into status, ended, result, note
  from public.procrastinate_jobs j
  where j.id = v_id;
  if not found then
    select h.status::text, true, h.result, h.note
    into status, ended, result, note
    from procjobs.job_history h
    where h.id = v_id
    order by h.finished_at desc
    limit 1;
    if not found then
      perform procjobs.raise_job_not_found(v_id);
    end if;
  end if;

  if status = 'failed' then
    select a.error_class, a.error_message
    into error_class, error_message
    from procjobs.job_attempts a
    where a.job_id = v_id
      and a.error_class is not null
    order by a.id desc
    limit 1;
  end if;
  return next;
end
$$;
comment on function procjobs.job_outcome(bigint) is
  'How a job ended: its status, whether it has ended at all, its result, the last error of a dead letter, and why it was cancelled. '
  'Unknown id: PJ007. Definer: the producer role has no rights on tables.';

create or replace function procjobs.job_result(job_id bigint)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.result from procjobs.job_outcome(job_id) o
$$;
comment on function procjobs.job_result(bigint) is
  'What the task returned, as JSON: select procjobs.job_result(42). Null: nothing, or the job has not succeeded (yet): procjobs.job_outcome says which. '
  'Unknown id: PJ007. Definer: the producer role has no rights on tables.';

create or replace function procjobs.await_job(job_id bigint)
returns table (status text, ended boolean, result jsonb, error_class text, error_message text, note text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  update public.procrastinate_jobs j
  set pj_awaited = true
  where j.id = await_job.job_id
    and j.status in ('todo', 'doing')
    and not j.pj_awaited;
  return query select * from procjobs.job_outcome(await_job.job_id);
end
$$;
comment on function procjobs.await_job(bigint) is
  'job_outcome, and from now on the end of the job is announced: NOTIFY procjobs_ended with its id. A hint, nothing more: ask again now and then. '
  'Unknown id: PJ007. Definer: the producer role has no rights on tables.';
