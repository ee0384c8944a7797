-- The ledger of schedules after the fact: what became of the jobs, what that says, and how long it is kept.
-- Owns:        the columns of schedule_ticks and schedule_runs that say how a job ended; deletes from both and from alerts.
-- Lock order:  schedule_ticks, schedule_runs, skipping locked rows; then alerts by kind and subject.

create or replace function procjobs.job_ends(p_ids bigint[])
returns table (
  job_id bigint, status public.procrastinate_job_status, started_at timestamptz, ended_at timestamptz, attempts integer, rows bigint, error text
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  return query
  select
    i, coalesce(j.status, h.status), coalesce(j.pj_started_at, h.started_at), coalesce(j.pj_finished_at, h.finished_at, procjobs.clock()),
    coalesce(j.attempts, h.attempts), procjobs.row_count_of(coalesce(j.pj_result, h.result)),
    case when coalesce(j.status, h.status) <> 'succeeded' then (
      select left(concat_ws(': ', a.error_class, a.error_message), 2000)
      from procjobs.job_attempts a
      where a.job_id = i
        and a.error_class is not null
      order by a.id desc
      limit 1
    ) end
  from unnest(p_ids) i
  left join public.procrastinate_jobs j on j.id = i
  left join procjobs.job_history h on h.id = i
  where j.id is null
     or j.status not in ('todo', 'doing');
end
$$;
comment on function procjobs.job_ends(bigint[]) is
  'How jobs ended, for those that did; a null status: it is gone without a trace (finished_jobs = delete).';

create or replace function procjobs.row_count_of(p_result jsonb)
returns bigint
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_typeof(p_result) = 'number' and p_result::text ~ '^-?[0-9]{1,18}$' then p_result::bigint end
$$;
comment on function procjobs.row_count_of(jsonb) is 'What a task returned, if that is a whole number.';

create or replace function procjobs.note_run_ends(p_max_rows integer default 2000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_after text := coalesce((select s.position from procjobs.upkeep_state s where s.chore = 'note_run_ends at'), '');
  v_ids bigint[];
  v_last text;
  v_names text[];
  v_run_names text[];
begin
  select array_agg(o.job_id), max(o.schedule) into v_ids, v_last
  from (
    select t.schedule, t.job_id
    from procjobs.schedule_ticks t
    where t.job_id is not null
      and t.ended_at is null
      and t.schedule >= v_after
    order by t.schedule, t.job_id
    limit p_max_rows
  ) o;
  if v_after <> '' or cardinality(v_ids) = p_max_rows then
    -- Many are open: round by round through all of them.
    insert into procjobs.upkeep_state as s (chore, ran_at, position)
    values ('note_run_ends at', procjobs.clock(), case when cardinality(v_ids) = p_max_rows then v_last else '' end)
    on conflict (chore) do update set ran_at = excluded.ran_at, position = excluded.position;
  end if;

  with noted as (
    update procjobs.schedule_ticks t
    set status = e.status, started_at = e.started_at, ended_at = e.ended_at, attempts = e.attempts, rows = e.rows, error = e.error
    from procjobs.job_ends(v_ids) e
    where t.job_id = e.job_id
      and t.ended_at is null
    returning t.schedule
  )
  select array_agg(distinct n.schedule) into v_names from noted n;

  v_ids := array(
    select r.job_id
    from procjobs.schedule_runs r
    where r.job_id is not null
      and r.ended_at is null
    order by r.schedule, r.job_id
    limit p_max_rows
  );
  with noted as (
    update procjobs.schedule_runs r
    set status = e.status, started_at = e.started_at, ended_at = e.ended_at, attempts = e.attempts, rows = e.rows, error = e.error
    from procjobs.job_ends(v_ids) e
    where r.job_id = e.job_id
      and r.ended_at is null
    returning r.schedule
  )
  select array_agg(distinct n.schedule) into v_run_names from noted n;
  v_names := array(select distinct n from unnest(v_names || v_run_names) n order by n);
  perform procjobs.judge_runs(v_names);
  return cardinality(v_names);
end
$$;
comment on function procjobs.note_run_ends(integer) is
  'Copies into the ledger how jobs of schedules ended, before they are forgotten, and judges what that says. Returns of how many schedules.';

create or replace function procjobs.last_runs(p_schedule text, p_most integer)
returns table (status public.procrastinate_job_status, ended_at timestamptz, rows bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select u.status, u.ended_at, u.rows
  from (
    (select t.status, t.ended_at, t.rows
     from procjobs.schedule_ticks t
     where t.schedule = p_schedule and t.ended_at is not null
     order by t.slot desc
     limit p_most)
    union all
    (select r.status, r.ended_at, r.rows
     from procjobs.schedule_runs r
     where r.schedule = p_schedule and r.ended_at is not null
     order by r.triggered_at desc
     limit p_most)
  ) u
  order by u.ended_at desc
  limit p_most
$$;
comment on function procjobs.last_runs(text, integer) is 'How the last jobs of a schedule ended, the newest first.';

create or replace function procjobs.judge_runs(p_names text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_last text[];
begin
  foreach v_name in array p_names loop
    v_last := array(select l.status::text from procjobs.last_runs(v_name, 3) l order by l.ended_at desc);
    if v_last = '{failed,failed,failed}' then
      perform procjobs.raise_alert('schedule_failing', v_name, format('%s failed three times in a row', v_name));
    elsif v_last[1] = 'succeeded' then
      perform procjobs.close_alerts(array['schedule_failing'], array[v_name], 'it succeeded');
    end if;
    if procjobs.cleans_nothing(v_name) then
      perform procjobs.raise_alert('cleanup_idle', v_name, format('%s has cleaned nothing up for seven days', v_name));
    else
      perform procjobs.close_alerts(array['cleanup_idle'], array[v_name], 'it cleans up again');
    end if;
  end loop;
end
$$;
comment on function procjobs.judge_runs(text[]) is
  'Opens and closes alerts of schedules whose jobs just ended: three failures in a row, a clean-up that has had nothing to do for seven days.';

create or replace function procjobs.cleans_nothing(p_schedule text)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from procjobs.schedules s where s.name = p_schedule and s."group" = 'cleanup')
    and exists (
      select
      from procjobs.schedule_ticks t
      where t.schedule = p_schedule
        and t.status = 'succeeded'
        and t.slot <= procjobs.clock() - interval '7 days'
        and t.slot > procjobs.clock() - interval '30 days'
        and t.rows is not null
    )
    and (
      select count(*) > 1 and max(t.rows) = 0
      from procjobs.schedule_ticks t
      where t.schedule = p_schedule
        and t.status = 'succeeded'
        and t.slot > procjobs.clock() - interval '7 days'
        and t.rows is not null
    )
$$;
comment on function procjobs.cleans_nothing(text) is
  'Whether a schedule of the group cleanup said of each of its runs of the last seven days that it deleted 0 rows, and had run before.';

create or replace function procjobs.forget_ticks(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := procjobs.clock() - (select s.keep_history from procjobs.schedule_settings s);
  v_count integer;
  v_runs integer;
begin
  delete from procjobs.schedule_ticks t
  where (t.schedule, t.slot) in (
    select o.schedule, o.slot
    from procjobs.schedule_ticks o
    where o.slot < v_before
      and not exists (
        -- A slot that may still be looked at is remembered.
        select from procjobs.schedules s where s.name = o.schedule and o.slot > procjobs.clock() - s.misfire_window
      )
    order by o.slot
    limit p_max_rows
    for update skip locked
  );
  get diagnostics v_count = row_count;
  delete from procjobs.schedule_runs r
  where r.id in (select o.id from procjobs.schedule_runs o where o.triggered_at < v_before order by o.id limit p_max_rows for update skip locked);
  get diagnostics v_runs = row_count;
  delete from procjobs.alerts a
  where a.id in (select o.id from procjobs.alerts o where o.closed_at < v_before order by o.closed_at limit p_max_rows for update skip locked);
  return v_count + v_runs;
end
$$;
comment on function procjobs.forget_ticks(integer) is
  'Deletes slots, runs and closed alerts older than schedule_settings.keep_history, in bounded batches; never slots within a misfire_window. Returns how many.';
