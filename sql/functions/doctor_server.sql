-- The doctor's look at the server: what keeps vacuum from its work, what runs out, whose settings are traps.
-- Owns:        nothing; reads the statistics and catalogs with the caller's own rights.
-- Lock order:  none.
-- Findings only: where nothing is wrong there is no row. severity: wrong (jobs do not run, or soon will not), warning
-- (somebody should look), note (what could not be looked at).

create or replace function procjobs.doctor_horizon()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Dead rows that an old snapshot may still see cannot be removed: the claim's index grows, and every claim with it.
  select 'warning', 'horizon',
    format('process %s (%s, user %s) has a transaction open since %s (%s, %s): no dead row newer than that can be removed',
      a.pid, coalesce(nullif(a.application_name, ''), 'no application name'), a.usename, procjobs.say_time(a.xact_start),
      procjobs.say_span(procjobs.clock() - a.xact_start), a.state),
    format('end it: select pg_terminate_backend(%s); to have it done, set idle_in_transaction_session_timeout, and transaction_timeout from PostgreSQL 17 on', a.pid)
  from pg_stat_activity a
  where a.datname = current_database()
    and a.backend_type in ('client backend', 'background worker')
    and (a.backend_xmin is not null or a.backend_xid is not null)
    and a.xact_start < procjobs.clock() - interval '5 minutes'
    and a.pid <> pg_backend_pid()
  union all
  select 'warning', 'horizon',
    format('prepared transaction %s of %s is open since %s (%s): no dead row newer than that can be removed',
      quote_literal(p.gid), p.owner, procjobs.say_time(p.prepared), procjobs.say_span(procjobs.clock() - p.prepared)),
    format('in database %I: rollback prepared %L, or commit prepared %L', p.database, p.gid, p.gid)
  from pg_prepared_xacts p
  where p.database = current_database()
    and p.prepared < procjobs.clock() - interval '5 minutes'
  union all
  select 'warning', 'horizon',
    format('nobody reads replication slot %s (%s): it keeps %s of WAL%s', s.slot_name, s.slot_type,
      pg_size_pretty(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end, s.restart_lsn)),
      case when s.xmin is not null then format(', and the dead rows of the last %s transactions', age(s.xmin))
        when s.catalog_xmin is not null then format(', and dead catalog rows of the last %s transactions', age(s.catalog_xmin))
        else '' end),
    format('start its reader, or: select pg_drop_replication_slot(%L)', s.slot_name)
  from pg_replication_slots s
  where not s.active
    and not s.temporary
    and (s.restart_lsn is not null or s.xmin is not null or s.catalog_xmin is not null)
  union all
  select 'warning', 'horizon',
    format('standby %s holds back the dead rows of the last %s transactions by hot_standby_feedback',
      coalesce(nullif(r.application_name, ''), r.client_addr::text, r.pid::text), age(r.backend_xmin)),
    'look for long queries on the standby'
  from pg_stat_replication r
  where age(r.backend_xmin) > 1000000
$$;
comment on function procjobs.doctor_horizon() is
  'Who keeps dead rows from being removed, and since when: long transactions, prepared ones, replication slots, standbys.';

create or replace function procjobs.doctor_logins()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Its "$user" in search_path is our schema.
  select 'warning', 'login role', 'logged in as procjobs, "$user" in search_path is our schema: bare names in your SQL may mean objects of procjobs',
    'use another login role, or: alter role procjobs set search_path = public'
  from pg_roles r
  where r.rolname = 'procjobs'
    and r.rolcanlogin
    and not exists (
      select
      from pg_db_role_setting d
      cross join lateral unnest(d.setconfig) as c(setting)
      where d.setrole in (r.oid, 0)
        and d.setdatabase in (0, (select b.oid from pg_database b where b.datname = current_database()))
        and c.setting like 'search\_path=%'
        and c.setting not like '%$user%'
    )
  union all
  select 'warning', 'login role',
    format('%s set %s: %s', coalesce('role ' || nullif(d.setrole, 0)::regrole::text, 'the database'), c.setting, t.trouble),
    format('alter %s reset %s', coalesce('role ' || nullif(d.setrole, 0)::regrole::text, format('database %I', current_database())), t.name)
  from pg_db_role_setting d
  cross join lateral unnest(d.setconfig) as c(setting)
  join (
    values
      ('default_transaction_read_only', '^on$', 'nothing can be enqueued or claimed'),
      ('default_transaction_isolation', '^(repeatable read|serializable)$', 'claims that meet end with serialization failures, and are tried again'),
      ('session_replication_role', '^(replica|local)$', 'the triggers on the job table do not fire'),
      ('row_security', '^off$', 'reading under row level security fails')
  ) as t(name, pattern, trouble) on c.setting like t.name || '=%' and split_part(c.setting, '=', 2) ~ t.pattern
  where d.setdatabase in (0, (select b.oid from pg_database b where b.datname = current_database()))
    and (d.setrole = 0 or exists (
      select from pg_roles r where r.rolname in ('procjobs_producer', 'procjobs_worker') and pg_has_role(d.setrole, r.oid, 'member')
    ))
$$;
comment on function procjobs.doctor_logins() is 'Names and settings of login roles that are traps.';

create or replace function procjobs.doctor_pg_cron(p_facts jsonb default null)
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Whoever set nothing up with pg_cron does without it: then it is only worth a note.
  with place as materialized (
    select p.loaded, p.database, f.facts, coalesce(f.facts -> 'jobs', '{}') <> '{}' as used
    from procjobs.pg_cron_place() p
    cross join lateral (select coalesce(p_facts, procjobs.pg_cron_facts()) as facts) f
  )
  select 'note', 'pg_cron', format('pg_cron runs in database %s: whether it does its work was not looked at', p.database),
    'procjobs pg-cron status looks there'
  from place p
  where p.loaded
    and p.facts is null
  union all
  select 'note', 'pg_cron', format('the server has pg_cron in database %s, and it keeps no time for this one', p.database),
    'procjobs pg-cron install, if it is to'
  from place p
  where p.facts -> 'usage' = 'true'
    and not p.used
  union all
  select f.severity, 'pg_cron', format('%s: %s', f.subject, f.finding), f.mend
  from place p
  cross join lateral procjobs.pg_cron_findings(p.facts) f
  where p.used
    and f.severity = 'warning'
$$;
comment on function procjobs.doctor_pg_cron(jsonb) is
  'What is wrong with pg_cron where our jobs are in it: missing, changed, switched off, failed, not started, of another version. '
  'p_facts: what pg_cron_facts_query found where pg_cron is; null: ask here.';

create or replace function procjobs.doctor_server()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'warning', 'autovacuum', format('%s is off: dead rows are never removed, and claims become slow', s.name),
    format('alter system set %s = on; select pg_reload_conf()', s.name)
  from pg_settings s
  where s.name in ('autovacuum', 'track_counts')
    and s.setting = 'off'
  union all
  select case when u.used > 0.9 then 'wrong' else 'warning' end, 'notify',
    format('the queue of NOTIFY is %s%% full: when it is full, no job can be enqueued', round(u.used * 100)),
    'somebody who listens has a transaction open: see pg_stat_activity for state idle in transaction'
  from (select pg_notification_queue_usage()::numeric as used) u
  where u.used > 0.25
  union all
  select 'warning', 'connections', format('%s of %s connections are taken', c.used, c.most),
    'raise max_connections, lower the pools of your applications, or put PgBouncer in front'
  from (
    select
      (select count(*) from pg_stat_activity a where a.backend_type = 'client backend') as used,
      (
        select sum(case s.name when 'max_connections' then 1 else -1 end * s.setting::integer)
        from pg_settings s
        where s.name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
      ) as most
  ) c
  where c.used >= 0.9 * c.most
  union all
  select l.severity, l.subject, l.finding, l.mend from procjobs.doctor_logins() l
  union all
  select 'note', 'horizon', 'transactions of other users were not looked at', format('grant pg_read_all_stats to %I', current_user)
  where not pg_has_role(current_user, 'pg_read_all_stats', 'usage')
  union all
  select h.severity, h.subject, h.finding, h.mend from procjobs.doctor_horizon() h
$$;
comment on function procjobs.doctor_server() is
  'What is wrong with the server, as far as the caller may see it: autovacuum, NOTIFY, connections, login roles, and who keeps dead rows.';

create or replace function procjobs.doctor_tables()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- What was asked of autovacuum and of the pages of the tables that change all the time: migrations/versions.
  select 'warning', 'autovacuum', format('%s lost its setting %s = %s', w.name, w.option, w.value),
    format('alter table %s set (%s = %s)', w.name, w.option, w.value)
  from (
    values
      ('public.procrastinate_jobs'::regclass, 'fillfactor', '70'),
      ('public.procrastinate_jobs'::regclass, 'autovacuum_vacuum_scale_factor', '0.02'),
      ('public.procrastinate_jobs'::regclass, 'autovacuum_vacuum_threshold', '10000'),
      ('procjobs.worker_state'::regclass, 'fillfactor', '50'),
      ('procjobs.limit_state'::regclass, 'fillfactor', '50'),
      ('procjobs.job_progress'::regclass, 'fillfactor', '70')
  ) as w(name, option, value)
  join pg_class c on c.oid = w.name
  left join pg_options_to_table(c.reloptions) o on o.option_name = w.option
  where o.option_value is null
  union all
  select 'warning', 'autovacuum', format('autovacuum is off for %s', c.oid::regclass),
    format('alter table %s reset (autovacuum_enabled)', c.oid::regclass)
  from pg_class c
  cross join lateral pg_options_to_table(c.reloptions) o
  where (c.oid = 'public.procrastinate_jobs'::regclass or c.relnamespace = 'procjobs'::regnamespace)
    and o.option_name = 'autovacuum_enabled'
    and not o.option_value::boolean
  union all
  -- A busy queue has many dead rows between two rounds of autovacuum; what counts is that no round came.
  select 'warning', 'bloat',
    format('%s has %s dead rows beside %s live ones, last vacuumed %s', s.relid::regclass, s.n_dead_tup, s.n_live_tup,
      coalesce(procjobs.say_time(v.last_at), 'never')),
    format('vacuum %s; then see why autovacuum does not come: the findings on horizon and autovacuum', s.relid::regclass)
  from pg_stat_all_tables s
  cross join lateral (select greatest(s.last_autovacuum, s.last_vacuum) as last_at) v
  where (s.relid = 'public.procrastinate_jobs'::regclass or s.schemaname = 'procjobs' and s.relname !~ '^job_history')
    and s.n_dead_tup > 20000 + 0.2 * s.n_live_tup
    and greatest(v.last_at, pg_postmaster_start_time()) < procjobs.clock() - interval '10 minutes'
$$;
comment on function procjobs.doctor_tables() is
  'What is wrong with the storage of the tables that change all the time: their settings, and dead rows that no vacuum removes.';
