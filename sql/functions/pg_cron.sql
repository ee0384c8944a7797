-- pg_cron: a clock of the server's own, which keeps time and runs SQL jobs where no process of procjobs is.
-- Owns:        jobs of pg_cron whose names begin with pg_cron_prefix().
-- Lock order:  none; pg_cron's own tables as its functions lock them.
-- pg_cron may live in another database: then these functions say what to run there, and `procjobs pg-cron` runs it.

create or replace function procjobs.pg_cron_prefix()
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('procjobs %s: ', current_database())
$$;
comment on function procjobs.pg_cron_prefix() is 'How the names of our jobs in pg_cron begin: one server may have several databases with procjobs.';

create or replace function procjobs.pg_cron_place()
returns table (known boolean, loaded boolean, database text, here boolean, background_workers boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    f.known, f.known and f.database is not null, f.database, f.database is not distinct from current_database()::text and f.database is not null,
    case when f.known then current_setting('cron.use_background_workers', true) = 'on' end
  from (
    select k.known, case when k.known then current_setting('cron.database_name', true) end as database
    from (select pg_has_role(current_user, 'pg_read_all_settings', 'usage') as known) k
  ) f
$$;
comment on function procjobs.pg_cron_place() is
  'Where pg_cron is: whether the caller may know at all (pg_read_all_settings), whether the server has loaded it, its database, whether that is this one, and whether it runs its jobs in background workers.';

create or replace function procjobs.pg_cron_wanted(p_version text, p_runners integer default 1)
returns table (name text, schedule text, command text, inside boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Before 1.5 a job starts each minute at most; each run works until shortly before the next.
  with pace as (
    select case when v.recent then '30 seconds' else '* * * * *' end as schedule, case when v.recent then 29 else 59 end as seconds
    from (select string_to_array(substring(p_version from '^[0-9]+\.[0-9]+'), '.')::integer[] >= array[1, 5] as recent) v
  )
  select 'time', p.schedule, format('call procjobs.keep_time(%s, ''pg_cron'')', p.seconds), true from pace p
  union all
  select format('jobs %s', n), p.schedule, format('call procjobs.run_sql_jobs(%s)', p.seconds), true
  from pace p, generate_series(1, p_runners) n
  union all
  select 'history', '17 3 * * *',
    'delete from cron.job_run_details d using cron.job j where j.jobid = d.jobid and j.jobname like ''procjobs %'' and d.end_time < timestamptz ''now'' - interval ''7 days''',
    false
$$;
comment on function procjobs.pg_cron_wanted(text, integer) is
  'The jobs that pg_cron of this version is to have: name after the prefix, schedule, command, and whether it runs in this database (else in pg_cron''s own). '
  'Keeping time and running jobs are apart, so that a long job holds up no schedule; runners: how many SQL jobs run at once.';

create or replace function procjobs.pg_cron_vacuum()
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_policies regclass := to_regclass('procjobs.table_policies');
  v_tables text;
begin
  if v_policies is not null then
    execute format(
      'select string_agg(distinct t.name::text, '', '' order by t.name::text)
       from (select procjobs.find_table(p.table_name) as name from %s p) t
       where t.name is not null',
      v_policies)
    into v_tables;
  end if;
  return 'vacuum (skip_locked, analyze) ' || v_tables;
end
$$;
comment on function procjobs.pg_cron_vacuum() is
  'The statement that vacuums the tables of the retention policies at night, where rows go by the thousand. Null: there are none. Definer: the admin role has no rights on tables.';

create or replace function procjobs.pg_cron_script(p_version text, p_runners integer, p_here boolean)
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with wanted as (
    select procjobs.pg_cron_prefix() || w.name as name, w.schedule, w.command, w.inside
    from procjobs.pg_cron_wanted(p_version, p_runners) w
    union all
    select procjobs.pg_cron_prefix() || 'vacuum', '47 3 * * *', v.command, true
    from (select procjobs.pg_cron_vacuum() as command) v
    where v.command is not null
  )
  select format(
    'select cron.unschedule(j.jobid) from cron.job j where j.username = current_user and left(j.jobname, %s) = %L and j.jobname <> all (%L)',
    length(procjobs.pg_cron_prefix()), procjobs.pg_cron_prefix(), array(select w.name from wanted w))
  union all
  select case
    when p_here or not w.inside then format('select cron.schedule(%L, %L, %L)', w.name, w.schedule, w.command)
    else format('select cron.schedule_in_database(%L, %L, %L, %L)', w.name, w.schedule, w.command, current_database())
  end
  from wanted w
$$;
comment on function procjobs.pg_cron_script(text, integer, boolean) is
  'The statements that set up pg_cron for this database, to be run in the database where pg_cron is (p_here: this one). They may be run again.';

drop function if exists procjobs.pg_cron_facts_query();
create or replace function procjobs.pg_cron_facts_query(p_what text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case p_what
    when 'rights' then $query$
      select jsonb_build_object(
        'version', e.extversion,
        'newest', (select a.default_version from pg_catalog.pg_available_extensions a where a.name = 'pg_cron'),
        'launcher', case when pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage') then exists (
          select from pg_catalog.pg_stat_activity s where s.backend_type like 'pg_cron%'
        ) end,
        'user', current_user,
        'usage', pg_catalog.has_schema_privilege(n.oid, 'usage'),
        'elsewhere', pg_catalog.has_function_privilege(f.oid, 'execute'),
        'jobs', '{}'::jsonb)
      from (select) one
      left join pg_catalog.pg_extension e on e.extname = 'pg_cron'
      left join pg_catalog.pg_namespace n on n.nspname = 'cron'
      left join pg_catalog.pg_proc f on f.pronamespace = n.oid and f.proname = 'schedule_in_database'
    $query$
    when 'jobs' then format($query$
      select coalesce(jsonb_object_agg(substr(j.jobname, %1$s), jsonb_build_object(
        'schedule', j.schedule, 'command', j.command, 'database', j.database, 'username', j.username, 'active', j.active,
        'last', (
          select jsonb_build_object('status', d.status, 'message', d.return_message, 'start', d.start_time, 'end', d.end_time)
          from cron.job_run_details d
          where d.jobid = j.jobid
          order by d.runid desc
          limit 1
        ))), '{}')
      from cron.job j
      where left(j.jobname, %1$s - 1) = %2$L
    $query$, length(procjobs.pg_cron_prefix()) + 1, procjobs.pg_cron_prefix())
  end
$$;
comment on function procjobs.pg_cron_facts_query(text) is
  'What to ask in the database where pg_cron is, for pg_cron_findings: first rights, with the version; where there is usage, jobs: ours, with their last runs.';

create or replace function procjobs.pg_cron_absence()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'warning', 'server',
    case
      when not p.known then format('%s may not see whether the server has pg_cron', current_user)
      else 'the server has not loaded pg_cron'
    end,
    case
      when not p.known then format('grant pg_read_all_settings to %I, or ask as a superuser', current_user)
      else format(
        '%sin postgresql.conf: shared_preload_libraries = ''%s'', cron.database_name = %L; restart the server; in that database: create extension pg_cron',
        case when exists (select from pg_available_extensions e where e.name = 'pg_cron') then '' else 'install the package (postgresql-NN-cron); ' end,
        concat_ws(',', nullif(current_setting('shared_preload_libraries'), ''), 'pg_cron'), current_database())
    end
  from procjobs.pg_cron_place() p
  where not p.loaded
$$;
comment on function procjobs.pg_cron_absence() is 'Why there is no pg_cron to talk to, and what mends it; no row where there is one.';

create or replace function procjobs.pg_cron_findings(p_facts jsonb)
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with place as (
    select p.*, p_facts ->> 'version' as version from procjobs.pg_cron_place() p
  ),
  wanted as (
    select w.name, w.schedule, w.command from place p, procjobs.pg_cron_wanted(p.version) w
    union all
    select 'vacuum', '47 3 * * *', procjobs.pg_cron_vacuum() where procjobs.pg_cron_vacuum() is not null
  ),
  job as (
    select j.key as name, j.value as job, j.value -> 'last' ->> 'status' as status, j.value -> 'last' ->> 'message' as message,
           (j.value -> 'last' ->> 'start')::timestamptz as started
    from jsonb_each(p_facts -> 'jobs') j
  )
  select 'info', 'server', format('pg_cron %s runs in database %s', p.version, p.database), null::text
  from place p
  where p.version is not null
  union all
  select 'warning', 'server', format('database %s has no extension pg_cron', p.database), format('in database %s: create extension pg_cron', p.database)
  from place p
  where p.version is null
  union all
  select 'warning', 'server', format('%s may not use pg_cron', p_facts ->> 'user'),
    format('in database %s: grant usage on schema cron to %I', p.database, p_facts ->> 'user')
  from place p
  where p.version is not null
    and p_facts -> 'usage' = 'false'
  union all
  select 'warning', 'server', format('%s may not schedule jobs for another database', p_facts ->> 'user'),
    format('in database %s: grant execute on function cron.schedule_in_database to %I', p.database, p_facts ->> 'user')
  from place p
  where p.version is not null
    and not p.here
    and p_facts -> 'elsewhere' = 'false'
  union all
  select 'info', 'server', format(
      'cron.use_background_workers is on: each run takes one of max_worker_processes (%s), which parallel queries and replication share, and no more than cron.max_running_jobs (%s) run at once',
      current_setting('max_worker_processes'), current_setting('cron.max_running_jobs', true)),
    'raise both, or turn it off and let the server''s own user log in over cron.host'
  from place p
  where p.background_workers
  union all
  select 'warning', 'extension', format('pg_cron is of version %s, the server brings %s', p.version, p_facts ->> 'newest'),
    format('in database %s: alter extension pg_cron update; then procjobs pg-cron install', p.database)
  from place p
  where p.version <> p_facts ->> 'newest'
  union all
  select 'warning', 'launcher', 'the launcher of pg_cron does not run: nothing is started', 'look for pg_cron in the log of the server, and restart it'
  from place p
  where p.version is not null
    and p_facts -> 'launcher' = 'false'
  union all
  select 'warning', w.name, case when j.job is null then 'is not installed' else 'is not as this version wants it' end, 'procjobs pg-cron install'
  from wanted w
  left join job j on j.name = w.name
  where p_facts ->> 'version' is not null
    and p_facts -> 'usage' = 'true'
    and (j.job ->> 'schedule', j.job ->> 'command') is distinct from (w.schedule, w.command)
  union all
  select 'warning', j.name, 'is switched off', format('in pg_cron''s database: select cron.alter_job(jobid, active => true) from cron.job where jobname = %L', procjobs.pg_cron_prefix() || j.name)
  from job j
  where j.job -> 'active' = 'false'
  union all
  select 'warning', j.name, format('failed at %s: %s', procjobs.say_time(j.started), split_part(j.message, E'\n', 1)),
    case
      when j.message ~ 'connection failed|could not connect|no password|authentication' then
        'let pg_cron log in: cron.host and pg_hba.conf, or ~/.pgpass of the server''s user; or cron.use_background_workers = on'
      when j.message ~ 'startup timeout|background worker' then 'raise max_worker_processes'
      else 'the log of the server says more'
    end
  from job j
  where j.status = 'failed'
  union all
  select 'warning', j.name, format('has not started since %s', procjobs.say_time(j.started)), 'look for the pg_cron launcher in the log of the server'
  from job j
  where j.job ->> 'schedule' not like '%3 * * *'
    and j.started < procjobs.wall_clock() - interval '3 minutes'
    and j.job -> 'active' = 'true'
  union all
  select 'ok', j.name, format('%s since %s, as %s', coalesce(j.status, 'waits for its first run'), coalesce(procjobs.say_time(j.started), 'now'), j.job ->> 'username'), null
  from job j
  where j.status is distinct from 'failed'
    and j.job -> 'active' = 'true'
$$;
comment on function procjobs.pg_cron_findings(jsonb) is
  'What is right and wrong with pg_cron, by what pg_cron_facts_query found: severity ok, info or warning, subject, finding, mend.';

create or replace function procjobs.pg_cron_facts()
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_facts jsonb;
  v_jobs jsonb;
begin
  if not (select p.here from procjobs.pg_cron_place() p) then
    return null;
  end if;
  execute procjobs.pg_cron_facts_query('rights') into v_facts;
  if v_facts ->> 'version' is not null and v_facts -> 'usage' = 'true' then
    execute procjobs.pg_cron_facts_query('jobs') into v_jobs;
    v_facts := v_facts || jsonb_build_object('jobs', v_jobs);
  end if;
  return v_facts;
end
$$;
comment on function procjobs.pg_cron_facts() is
  'What pg_cron_facts_query finds, where pg_cron is in this database; else null. With the caller''s own rights.';

create or replace function procjobs.pg_cron_status()
returns table (severity text, subject text, finding text, mend text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query select a.* from procjobs.pg_cron_absence() a;
  if found then
    return;
  elsif not (select p.here from procjobs.pg_cron_place() p) then
    return query
    select 'info', 'server', format('pg_cron runs in database %s', p.database), 'procjobs pg-cron status looks there'
    from procjobs.pg_cron_place() p;
    return;
  end if;
  return query select f.* from procjobs.pg_cron_findings(procjobs.pg_cron_facts()) f;
end
$$;
comment on function procjobs.pg_cron_status() is
  'Whether pg_cron keeps time and runs SQL jobs for this database, and what is missing with its mend: select * from procjobs.pg_cron_status(). With the caller''s own rights.';

create or replace function procjobs.pg_cron_install(runners integer default 1)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lacking record;
  v_statement text;
  v_count integer := 0;
begin
  select s.finding, s.mend into v_lacking
  from procjobs.pg_cron_status() s
  where s.subject = 'server'
    and (s.severity = 'warning' or s.mend like 'procjobs pg-cron%')
  limit 1;
  if found then
    raise exception 'pg_cron cannot be set up from here: %', v_lacking.finding
      using errcode = 'PJ017',
            detail = 'nothing was changed',
            hint = replace(v_lacking.mend, 'status looks', 'install sets it up');
  end if;
  for v_statement in
    select s
    from pg_extension e
    cross join lateral procjobs.pg_cron_script(e.extversion, runners, true) s
    where e.extname = 'pg_cron'
  loop
    execute v_statement;
    v_count := v_count + 1;
  end loop;
  return v_count - 1;
end
$$;
comment on function procjobs.pg_cron_install(integer) is
  'Lets pg_cron of this database keep time and run SQL jobs, as the caller: select procjobs.pg_cron_install(). runners: how many SQL jobs run at once. '
  'May be called again. Returns how many jobs of pg_cron there are for it. What is missing: PJ017. With the caller''s own rights.';

create or replace function procjobs.pg_cron_removal()
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('select cron.unschedule(j.jobid) from cron.job j where left(j.jobname, %s) = %L',
    length(procjobs.pg_cron_prefix()), procjobs.pg_cron_prefix())
$$;
comment on function procjobs.pg_cron_removal() is 'The statement that takes our jobs out of pg_cron, to be run where pg_cron is; one row for each.';

create or replace function procjobs.pg_cron_remove()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer := 0;
begin
  if has_schema_privilege((select n.oid from pg_namespace n where n.nspname = 'cron'), 'usage') then
    execute format('with gone as (%s) select count(*) from gone', procjobs.pg_cron_removal()) into v_count;
  end if;
  return v_count;
end
$$;
comment on function procjobs.pg_cron_remove() is
  'Takes our jobs out of pg_cron of this database; workers go on as they are. What runs ends its round. Returns how many. With the caller''s own rights.';

create or replace function procjobs.lost_sessions()
returns table (id bigint, pid integer, started_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select w.id, w.pid, w.started_at
  from procjobs.worker_state w
  where w.kind = 'session'
    and w.suspected_at is not null
    and w.dead_at is null
    and w.last_words is null
$$;
comment on function procjobs.lost_sessions() is 'Sessions that are suspected and have said nothing yet. Definer: the worker role has no rights on tables.';

create or replace function procjobs.note_last_words(p_session bigint, p_words text)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.worker_state
  set last_words = left(p_words, 10000)
  where id = p_session
    and kind = 'session'
$$;
comment on function procjobs.note_last_words(bigint, text) is 'Notes the error with which a session ended. Definer: the worker role has no rights on tables.';

create or replace function procjobs.hear_pg_cron()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_session record;
  v_runs regclass := case
    when has_schema_privilege((select n.oid from pg_namespace n where n.nspname = 'cron'), 'usage') then to_regclass('cron.job_run_details') end;
  v_words text;
  v_count integer := 0;
begin
  for v_session in select s.id, s.pid, s.started_at from procjobs.lost_sessions() s loop
    exit when v_runs is null;
    -- Its own rows, by pg_cron's policy: of the user as whom this runs.
    execute format(
      'select d.return_message from %s d
       where d.job_pid = $1 and d.status = ''failed'' and d.start_time >= $2 order by d.runid desc limit 1', v_runs)
    into v_words
    using v_session.pid, v_session.started_at - interval '1 minute';
    if v_words is not null then
      perform procjobs.note_last_words(v_session.id, v_words);
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
exception
  when insufficient_privilege or undefined_column then
    return v_count;
end
$$;
comment on function procjobs.hear_pg_cron() is
  'Asks pg_cron for the error with which its sessions ended: a procedure that raises ends its session, and only pg_cron hears why. With the caller''s own rights. Returns how many had one.';
