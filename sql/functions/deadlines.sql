-- Deadlines: the second clock of a running job, beside its worker's heartbeat.
-- Owns:        requests to stop that nobody but the timeout made (pj_cancel with "timeout").
-- Lock order:  procrastinate_jobs by id, skipping locked rows.
-- The worker stops a job by itself when its time is over. This is for a worker that lives but is stuck, or is not ours.

drop function if exists procjobs.stop_overdue_jobs(interval, integer);
create or replace function procjobs.stop_overdue_jobs(
  p_grace interval default '10 seconds', p_max_jobs integer default 1000, p_workers bigint[] default null
)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_count integer;
begin
  with overdue as (
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'doing'
      and j.pj_deadline < v_now - p_grace
      and j.pj_deadline > j.pj_started_at
      and not j.abort_requested
      and (p_workers is null or j.worker_id = any (p_workers))
    order by j.pj_deadline
    limit p_max_jobs
    for update skip locked
  ),
  asked as (
    -- The trigger tells the worker by NOTIFY; its heartbeat sees it in any case.
    update public.procrastinate_jobs j
    set abort_requested = true,
        pj_cancel = jsonb_build_object('by', 'procjobs', 'at', v_now, 'reason', 'it runs longer than its timeout', 'timeout', true)
    where j.id = any (array(select id from overdue order by id))
    returning j.id, j.worker_id, j.pj_deadline
  ),
  noted as (
    insert into procjobs.job_events (job_id, at, type, actor, detail)
    select a.id, v_now, 'overdue', 'procjobs', jsonb_build_object('worker_id', a.worker_id, 'deadline', a.pj_deadline)
    from asked a
  )
  select count(*) into v_count from asked;
  return v_count;
end
$$;
comment on function procjobs.stop_overdue_jobs(interval, integer, bigint[]) is
  'Asks running jobs (of these workers; null: of any) to stop that are over their deadline by a grace: their worker should have ended them by itself. '
  'They end as failed with JobTimeout and are retried by policy. Returns how many. Upkeep calls it.';
