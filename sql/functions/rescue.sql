-- Rescue: jobs whose worker died wait again.
-- Owns:        worker_state.suspected_at and dead_at; the step doing -> todo or failed of jobs nobody runs any more.
-- Lock order:  worker_state by id, then procrastinate_jobs by id, skipping locked rows.
-- Two observations, never one: after an outage of the database every heartbeat looks old at first sight.

create or replace function procjobs.mark_dead_workers()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_count integer;
begin
  with silent as (
    select w.id
    from procjobs.worker_state w
    where w.dead_at is null
      and w.stopped_at is null
      and w.kind <> 'session'
      -- Also from the future, as after the clock was set back: who lives beats before the second look.
      and w.last_heartbeat not between v_now - w.lease and v_now + w.lease
    order by w.id
    for update skip locked
  )
  update procjobs.worker_state w
  set suspected_at = least(w.suspected_at, v_now),
      dead_at = case when w.suspected_at < v_now - w.heartbeat_every then v_now end
  from silent
  where w.id = silent.id;

  delete from public.procrastinate_workers p
  using procjobs.worker_state w
  where w.id = p.id
    and w.dead_at is not null;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.mark_dead_workers() is
  'A worker without a heartbeat for its lease is suspected; still silent one heartbeat interval later, it is dead; one from the future counts as none. Returns how many died.';

create or replace function procjobs.living_workers()
returns setof bigint
language sql
stable
rows 100
set search_path = pg_catalog, pg_temp
as $$
  select w.id
  from procjobs.worker_state w
  where w.dead_at is null
    and w.stopped_at is null
  union all
  -- A worker of upstream's has no state of ours, only its heartbeat.
  select p.id
  from public.procrastinate_workers p
  where p.last_heartbeat > procjobs.clock() - interval '60 seconds'
    and not exists (select from procjobs.worker_state w where w.id = p.id)
$$;
comment on function procjobs.living_workers() is
  'The workers whose jobs are theirs: ours that were not declared dead and have not left, and upstream''s whose heart beats.';

create or replace function procjobs.stranded_jobs(p_max_jobs integer)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_gone bigint[];
  v_ids bigint[];
  v_unowned bigint[];
begin
  -- A loose index scan: one probe a worker that runs something, however many jobs it runs.
  with recursive runner(id) as (
    (
      select j.worker_id
      from public.procrastinate_jobs j
      where j.status = 'doing'
        and j.worker_id is not null
      order by j.worker_id
      limit 1
    )
    union all
    select (
      select j.worker_id
      from public.procrastinate_jobs j
      where j.status = 'doing'
        and j.worker_id > runner.id
      order by j.worker_id
      limit 1
    )
    from runner
    where runner.id is not null
  )
  select array_agg(r.id)
  into v_gone
  from runner r
  where r.id is not null
    and r.id not in (select procjobs.living_workers());

  if v_gone is not null then
    v_ids := array(
      select j.id
      from public.procrastinate_jobs j
      where j.status = 'doing'
        and j.worker_id = any (v_gone)
      limit p_max_jobs
      for update skip locked
    );
  end if;
  v_unowned := array(
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'doing'
      and j.worker_id is null
    limit p_max_jobs
    for update skip locked
  );
  return array(select unnest(v_ids || v_unowned) order by 1);
end
$$;
comment on function procjobs.stranded_jobs(integer) is
  'Running jobs whose worker died, left, or is unknown; at most p_max_jobs of each kind, locked.';

create or replace function procjobs.rescue_job(p_id bigint)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_job public.procrastinate_jobs;
  v_worker procjobs.worker_state;
  v_result text;
begin
  select j.* into v_job
  from public.procrastinate_jobs j
  where j.id = p_id
    and j.status = 'doing'
  for update skip locked;
  -- Somebody else may have rescued it meanwhile, and a living worker may run it again.
  if not found or v_job.worker_id in (select procjobs.living_workers()) then
    return null;
  end if;

  select w.* into v_worker
  from procjobs.worker_state w
  where w.id = v_job.worker_id;

  if v_worker.stopped_at is not null and v_worker.dead_at is null then
    v_result := procjobs.settle_job(v_job, '{"outcome": "released", "started": "true"}');
  elsif v_worker.kind = 'session' then
    v_result := procjobs.settle_lost_session(v_job, v_worker);
  else
    v_result := procjobs.settle_crash(
      v_job,
      jsonb_build_object(
        'error_class', 'WorkerDied',
        'error_message', format(
          'worker %s (%s) stopped sending heartbeats while it ran this job',
          coalesce(v_worker.name, 'unknown'), coalesce(v_job.worker_id::text, 'no id')
        )
      ),
      coalesce(v_worker.heartbeat_every, interval '10 seconds')
    );
  end if;

  insert into procjobs.job_events (job_id, at, type, detail)
  values (
    p_id, procjobs.clock(), 'rescued',
    jsonb_build_object('worker', v_worker.name, 'worker_id', v_job.worker_id, 'result', v_result)
  );
  if v_job.lock is not null then
    perform procjobs.promote_locks(array[v_job.lock]);
  end if;
  return v_result;
end
$$;
comment on function procjobs.rescue_job(bigint) is
  'Takes a job from a worker that died (a crash is counted) or left (none is).';

create or replace function procjobs.rescue_jobs(p_max_jobs integer default 1000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_id bigint;
  v_count integer := 0;
begin
  perform procjobs.mark_dead_workers(), procjobs.watch_sessions();

  -- More than are rescued in one go, so that some that cannot be do not keep the others for ever.
  foreach v_id in array procjobs.stranded_jobs(3 * p_max_jobs) loop
    exit when v_count >= p_max_jobs;
    begin
      if procjobs.rescue_job(v_id) is not null then
        v_count := v_count + 1;
      end if;
    exception
      when others then
        -- One job that cannot be rescued must not keep the others: it is left for the next pass, and seen.
        raise warning 'job % could not be rescued: %', v_id, sqlerrm;
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.rescue_jobs(integer) is
  'Declares silent workers dead and makes their jobs wait again; a third crash makes a dead letter and is job.stalled. Any worker and pg_cron may call it. '
  'Returns how many jobs were rescued. Definer: the worker role has no rights on tables.';
