-- Upkeep: what must happen again and again, whoever does it.
-- Owns:        upkeep_state.
-- Lock order:  an advisory lock (one caller at a time, the others return at once), then as the called functions say.

create or replace function procjobs.chore_is_due(p_chore text, p_every interval)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  with taken as (
    insert into procjobs.upkeep_state as s (chore, ran_at)
    values (p_chore, procjobs.clock())
    on conflict (chore) do update
      set ran_at = excluded.ran_at
      where s.ran_at <= excluded.ran_at - p_every
         or s.ran_at > excluded.ran_at
    returning chore
  )
  select exists (select from taken)
$$;
comment on function procjobs.chore_is_due(text, interval) is
  'True, and noted as run now, when a chore last ran at least this long ago (or in the future, after a clock was set back).';

create or replace function procjobs.forget_workers()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.worker_state
  where coalesce(dead_at, stopped_at) < procjobs.clock() - interval '7 days';
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_workers() is 'Deletes workers that died or left more than seven days ago. Returns how many.';

create or replace function procjobs.run_chore(p_chore text, p_every interval)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
begin
  if p_every is null or procjobs.chore_is_due(p_chore, p_every) then
    execute format('select procjobs.%I()', p_chore);
  end if;
exception
  when others then
    -- A chore that fails, or must wait for somebody's lock (an index that is built), must not keep the others from being
    -- done: what one does is undone, and the log says why.
    raise warning 'chore % failed: %', p_chore, sqlerrm;
end
$$;
comment on function procjobs.run_chore(text, interval) is
  'Calls a chore of upkeep, named like its function, if it is due (null: always).';

create or replace function procjobs.promote_ready()
returns double precision
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  -- One caller at a time in the whole fleet, and none that waits for the chores of another.
  if pg_try_advisory_xact_lock(hashtext('procjobs.promote_ready')) then
    perform procjobs.run_chore('promote_due', null);
    perform procjobs.run_chore('try_breakers', null);
    perform procjobs.run_chore('sweep_limits', null);
  end if;
  return least(
    (
      select extract(epoch from j.scheduled_at) - extract(epoch from procjobs.clock())  -- the time may be infinite
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'time'
      order by j.scheduled_at
      limit 1
    ),
    procjobs.limits_due_in(),
    procjobs.breakers_due_in()
  );
end
$$;
comment on function procjobs.promote_ready() is
  'Makes claimable what waited for a moment that has come: scheduled jobs, those a rate has room for again, the probe of an open breaker. '
  'Every worker calls it at that moment. Returns the seconds until the next scheduled job is due, the next rate has room or the next open breaker is '
  'tried (null: none). Definer: the worker role has no rights on tables.';

create or replace function procjobs.upkeep()
returns double precision
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  -- One caller at a time in the whole fleet; whoever finds it taken has nothing to do.
  if pg_try_advisory_xact_lock(hashtext('procjobs.upkeep')) then
    perform procjobs.run_chore('rescue_jobs', null);
    perform procjobs.run_chore('sweep_locks', interval '2 seconds');
    perform procjobs.run_chore('stop_overdue_jobs', interval '5 seconds');
    perform procjobs.run_chore('resume_paused_jobs', null);
    perform procjobs.run_chore('forget_progress', interval '1 hour');
    perform procjobs.run_chore('sweep_batches', interval '2 seconds');
    perform procjobs.run_chore('sweep_unique_keys', interval '1 minute');
    perform procjobs.run_chore('ensure_history_partitions', interval '1 minute');
    perform procjobs.run_chore('forget_workers', interval '1 hour');
    perform procjobs.run_chore('forget_batches', interval '10 minutes');
    perform procjobs.run_chore('forget_limit_state', interval '1 minute');
    perform procjobs.run_chore('forget_reminders', interval '1 hour');
    perform procjobs.run_chore('forget_setting_changes', interval '1 hour');
    perform procjobs.run_chore('forget_daily_reports', interval '1 hour');
    perform procjobs.run_chore('note_run_ends', interval '2 seconds');
    perform procjobs.run_chore('forget_schedules', interval '1 minute');
    perform procjobs.run_chore('retry_schedules', interval '1 minute');
    perform procjobs.run_chore('forget_ticks', interval '10 minutes');
    perform procjobs.run_chore('forget_digest_runs', interval '10 minutes');
    perform procjobs.run_chore('forget_notifications', interval '1 minute');
    perform procjobs.run_chore('watch_backlog', interval '30 seconds');
    perform procjobs.run_chore('watch_notifications', interval '30 seconds');
    perform procjobs.run_chore('forget_effects', interval '1 hour');
    perform procjobs.run_chore('forget_breakers', interval '1 hour');
    perform procjobs.run_chore('watch_clocks', interval '30 seconds');
    perform procjobs.run_chore('watch_processes', interval '5 seconds');
    -- After those that watch: what they found goes out with their own transaction.
    perform procjobs.run_chore('tell_alerts', interval '2 seconds');
    -- Last: it may hold a lock on the whole history, until this ends.
    perform procjobs.run_chore('run_retention', interval '1 minute');
  end if;

  return procjobs.promote_ready();
end
$$;
comment on function procjobs.upkeep() is
  'One round of upkeep: dead workers, stranded locks, history partitions, and what promote_ready does. Every worker calls it about once a second; pg_cron may. '
  'Returns what promote_ready returns. Definer: the worker role has no rights on tables.';
