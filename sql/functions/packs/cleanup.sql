-- What applications have scheduled, as functions that can be called by hand: each returns a number.
-- Owns:        nothing; each is a policy of procjobs.table_policies by the same name, or a chore of the engine.
-- Lock order:  as the called functions say.
-- Which table is meant says the policy: procjobs.set_table_policy('cleanup_expired_sessions', 'app.sessions', 'expires_at', '0').

do $do$
declare
  v_name text;
  v_words text;
begin
  for v_name, v_words in values
    ('cleanup_removed_team_members', 'Deletes members that were removed long enough ago'),
    ('cleanup_expired_sessions', 'Deletes sessions that have expired'),
    ('cleanup_expired_email_verification_tokens', 'Deletes tokens of address checks that have expired'),
    ('cleanup_expired_password_reset_tokens', 'Deletes tokens of forgotten passwords that have expired'),
    ('expire_deliverables', 'Marks deliverables as expired that were delivered long enough ago'),
    ('cleanup_expired_invitations', 'Deletes invitations that expired long enough ago'),
    ('cleanup_audit_logs', 'Deletes old entries of the audit log'),
    ('cleanup_logs', 'Deletes old entries of the log')
  loop
    execute format(
      'create or replace function procjobs.%I() returns integer language sql set search_path = pg_catalog, pg_temp as %L',
      v_name, format('select procjobs.run_retention(%L)::integer', v_name));
    execute format(
      'comment on function procjobs.%I() is %L',
      v_name, v_words || ', by the policy of this name. Returns how many, at most 10000 a call.');
  end loop;
end
$do$;

create or replace function procjobs.cleanup_old_jobs()
returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(procjobs.run_retention(), 0)
$$;
comment on function procjobs.cleanup_old_jobs() is
  'One pass over jobs that ended, by the policies of procjobs.retention; upkeep does the same by itself. Returns how many were forgotten.';

create or replace function procjobs.process_job_queue()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_queues text[];
  v_jobs integer;
begin
  perform procjobs.upkeep();
  select array_agg(distinct r.queue_name), count(*) into v_queues, v_jobs
  from (
    select j.queue_name::text
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for is null
    limit 10000
  ) r;
  perform procjobs.wake_queues(v_queues);
  return v_jobs;
end
$$;
comment on function procjobs.process_job_queue() is
  'A round of upkeep, then tells workers again of jobs that they may take: for schedules and pg_cron, should a NOTIFY be lost and everybody be idle. '
  'Returns how many jobs wait for a worker, counting up to 10000. Definer: the worker and admin roles have no rights on tables.';
