-- Upkeep: what must happen again and again, whoever does it.
-- Owns:        upkeep_state, the daily partitions of job_history.
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

create or replace function procjobs.ensure_history_partition(p_day date)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
declare
  v_name text := 'job_history_' || to_char(p_day, 'YYYYMMDD');
  v_from timestamptz := p_day::timestamp at time zone 'UTC';
  v_to timestamptz := (p_day + 1)::timestamp at time zone 'UTC';
begin
  if to_regclass('procjobs.' || v_name) is not null then
    return false;
  end if;

  -- Rows of that day that came before their partition move over before it is attached.
  execute format('create table procjobs.%I (like procjobs.job_history including defaults)', v_name);
  lock table procjobs.job_history_default in access exclusive mode;
  execute format(
    'with moved as (
       delete from procjobs.job_history_default
       where finished_at >= $1 and finished_at < $2
       returning *
     )
     insert into procjobs.%I select * from moved', v_name
  ) using v_from, v_to;
  execute format(
    'alter table procjobs.job_history attach partition procjobs.%I for values from (%L) to (%L)', v_name, v_from, v_to
  );
  execute format('comment on table procjobs.%I is %L', v_name, 'Jobs that ended on ' || p_day || ' (UTC).');
  return true;
end
$$;
comment on function procjobs.ensure_history_partition(date) is
  'Creates the history partition of one day (UTC), if it is missing, and moves into it what the default partition caught.';

create or replace function procjobs.ensure_history_partitions(p_days_ahead integer default 7)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_today date := (procjobs.clock() at time zone 'UTC')::date;
  v_count integer := 0;
begin
  for v_ahead in 0 .. p_days_ahead loop
    begin
      v_count := v_count + procjobs.ensure_history_partition(v_today + v_ahead)::integer;
    exception
      when lock_not_available or duplicate_table or unique_violation then
        -- Somebody reads the default partition for long, or creates the same one: the next pass is soon.
        raise notice 'history partition of % not created yet: %', v_today + v_ahead, sqlerrm;
        exit;
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.ensure_history_partitions(integer) is
  'Creates the history partitions of today and the coming days. Returns how many were new. '
  'Definer: only the owner creates tables.';

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
as $$
begin
  if p_every is null or procjobs.chore_is_due(p_chore, p_every) then
    execute format('select procjobs.%I()', p_chore);
  end if;
exception
  when others then
    -- A chore that fails must not keep the others from being done: what one does is undone, and the log says why.
    raise warning 'chore % failed: %', p_chore, sqlerrm;
end
$$;
comment on function procjobs.run_chore(text, interval) is
  'Calls a chore of upkeep, named like its function, if it is due (null: always).';

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
    perform procjobs.run_chore('promote_due', null);
    perform procjobs.run_chore('rescue_jobs', null);
    perform procjobs.run_chore('sweep_locks', interval '2 seconds');
    perform procjobs.run_chore('ensure_history_partitions', interval '1 minute');
    perform procjobs.run_chore('forget_workers', interval '1 hour');
  end if;

  return (
    select extract(epoch from j.scheduled_at) - extract(epoch from procjobs.clock())  -- the time may be infinite
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'time'
    order by j.scheduled_at
    limit 1
  );
end
$$;
comment on function procjobs.upkeep() is
  'One round of upkeep: due jobs, dead workers, stranded locks, history partitions. Every worker calls it about once a second; pg_cron may. '
  'Returns the seconds until the next scheduled job is due (null: none). Definer: the worker role has no rights on tables.';
