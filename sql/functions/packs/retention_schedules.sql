-- The tasks and schedules that come with retention: those of policies that are there, and the engine's own chores.
-- Owns:        the SQL tasks procjobs.work_retention, cleanup_old_jobs, process_job_queue and retry_failed_jobs; schedules of source pack.
-- Lock order:  tasks, then schedules by name.

create or replace function procjobs.retention_schedules()
returns table (name text, cron text, task text, args jsonb, of_policy boolean, "group" text, description text)
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select
    s.name, s.cron, 'procjobs.' || s.task,
    case when s.task = 'work_retention' then jsonb_build_object('policy', s.name, 'rows', 0) else '{}' end,
    s.of_policy, s.in_group, s.description
  from (values
    ('cleanup_removed_team_members', '0 2 * * *', 'work_retention', true, 'cleanup', 'Members who were removed long ago'),
    ('cleanup_expired_invitations', '0 2 * * *', 'work_retention', true, 'cleanup', 'Invitations that expired long ago'),
    ('cleanup_old_jobs', '0 2 * * *', 'cleanup_old_jobs', false, 'cleanup', 'Jobs that ended, by procjobs.retention'),
    ('cleanup_expired_sessions', '0 3 * * *', 'work_retention', true, 'cleanup', 'Sessions that have expired'),
    ('cleanup_logs', '0 3 * * 0', 'work_retention', true, 'cleanup', 'Old entries of the log'),
    ('cleanup_expired_email_verification_tokens', '0 4 * * 0', 'work_retention', true, 'cleanup', 'Tokens of address checks that have expired'),
    ('cleanup_expired_password_reset_tokens', '10 4 * * 0', 'work_retention', true, 'cleanup', 'Tokens of forgotten passwords that have expired'),
    ('expire_deliverables', '0 5 * * *', 'work_retention', true, 'cleanup', 'Deliverables whose time is over'),
    ('cleanup_audit_logs', '0 0 * * *', 'work_retention', true, 'cleanup', 'Old entries of the audit log'),
    ('cleanup_orphaned_uploads', '0 0 * * *', 'cleanup_orphaned_uploads', true, 'cleanup', 'Uploads that nobody uses, and files without a row'),
    ('process_job_queue', '* * * * *', 'process_job_queue', false, null, 'A round of upkeep, should everybody have missed a NOTIFY'),
    ('retry_failed_jobs', '*/10 * * * *', 'retry_failed_jobs', false, null, 'Dead letters whose error passes by itself')
  ) as s (name, cron, task, of_policy, in_group, description)
$$;
comment on function procjobs.retention_schedules() is
  'The schedules that come with retention. Those of a policy are there as long as it is.';

create or replace function procjobs.declare_retention()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  foreach v_name in array '{work_retention, cleanup_old_jobs, process_job_queue, retry_failed_jobs}'::text[] loop
    perform procjobs.register_sql_task(
      'procjobs.' || v_name, 'procjobs.' || v_name, queue => 'cleanup', max_attempts => 3, backoff_base => '1 minute',
      timeout => case v_name when 'work_retention' then interval '6 hours' else interval '10 minutes' end);
  end loop;
  perform procjobs.register_sql_task(
    'CLEANUP_DATA', 'procjobs.work_retention', queue => 'cleanup', max_attempts => 3, backoff_base => '1 minute', timeout => '6 hours');
  return procjobs.declare_retention_schedules();
end
$$;
comment on function procjobs.declare_retention() is
  'Registers the SQL tasks of retention and makes its schedules. migrate calls it. Returns how many schedules are new or changed.';

create or replace function procjobs.declare_retention_schedules()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schedules jsonb;
  v_count integer;
  v_gone text;
begin
  select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'name', s.name, 'task', s.task, 'cron', s.cron, 'args', nullif(s.args, '{}'), 'group', s."group", 'description', s.description
  )) order by s.name)
  into v_schedules
  from procjobs.retention_schedules() s
  where not s.of_policy
     or exists (select from procjobs.table_policies p where p.name = s.name);
  select count(*) into v_count from procjobs.declare_schedules('pack', v_schedules) d where d.changed;

  for v_gone in
    select s.name
    from procjobs.retention_schedules() s
    join procjobs.schedules known on known.name = s.name and known.source = 'pack'
    where s.of_policy
      and not exists (select from procjobs.table_policies p where p.name = s.name)
    order by s.name
  loop
    perform procjobs.unschedule(v_gone);
  end loop;
  return v_count;
end
$$;
comment on function procjobs.declare_retention_schedules() is
  'Makes the schedules of retention, and takes back those whose policy is gone. Called when a policy comes or goes. Returns how many are new or changed.';
