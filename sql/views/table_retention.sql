-- Retention of the application's tables: the policies, and what their runs did.

create view procjobs.table_retention_runs as
select
  l.id,
  l.policy,
  case
    when l.error is not null then 'failed'
    when l.ended_at is not null then 'done'
    when exists (select from pg_stat_activity a where a.pid = l.pid) then 'running'
    else 'stopped'
  end as state,
  l.actor,
  l.began_at,
  l.ended_at,
  coalesce(l.ended_at, l.noted_at) - l.began_at as took,
  l.cutoff,
  l.rows,
  case when l.expected > 0 and l.ended_at is null then least(100, round(100.0 * l.rows / l.expected))::integer end as percent,
  l.batches,
  l.slowest,
  l.passed_over,
  l.referenced,
  l.error,
  l.vacuumed_at
from procjobs.table_retention_log l;
comment on view procjobs.table_retention_runs is 'Runs of policies for the application''s tables, those under way included. Kept for a year.';
comment on column procjobs.table_retention_runs.id is 'Number of the run.';
comment on column procjobs.table_retention_runs.policy is 'The policy.';
comment on column procjobs.table_retention_runs.state is 'running, done, failed, or stopped: its connection is gone, and the next run goes on.';
comment on column procjobs.table_retention_runs.actor is 'Database user who ran it.';
comment on column procjobs.table_retention_runs.began_at is 'When it began.';
comment on column procjobs.table_retention_runs.ended_at is 'When it ended.';
comment on column procjobs.table_retention_runs.took is 'How long it took, or has taken so far.';
comment on column procjobs.table_retention_runs.cutoff is 'Rows with a time before this were due.';
comment on column procjobs.table_retention_runs.rows is 'Rows deleted or set.';
comment on column procjobs.table_retention_runs.percent is 'While it runs: how much of what was due when it began.';
comment on column procjobs.table_retention_runs.batches is 'Transactions that changed rows.';
comment on column procjobs.table_retention_runs.slowest is 'How long the longest of these took, and so held locks.';
comment on column procjobs.table_retention_runs.passed_over is
  'How often a row was left for the next run: locked by others, or changed meanwhile.';
comment on column procjobs.table_retention_runs.referenced is
  'Rows that stayed since others refer to them, by constraint: {"constraint": {"table": ..., "rows": ...}}.';
comment on column procjobs.table_retention_runs.error is 'What ended it early.';
comment on column procjobs.table_retention_runs.vacuumed_at is 'When the table was vacuumed after it.';

create view procjobs.table_retention as
select
  p.name,
  p.table_name,
  p.column_name,
  p.keep,
  p.condition,
  p.action,
  p.assignments,
  p.batch,
  p.oldest_first,
  p.enabled,
  p.run_as,
  p.description,
  p.set_at,
  p.set_by,
  r.began_at as last_run_at,
  r.state as last_run,
  r.rows as last_rows,
  r.referenced as last_referenced,
  coalesce(r.error, (select concat_ws(': ', 'it does not fit any more', f.what) from procjobs.policy_fault(p) f where f.what is not null)) as fault
from procjobs.table_policies p
left join lateral (
  select t.*
  from procjobs.table_retention_runs t
  where t.policy = p.name
  order by t.id desc
  limit 1
) r on true;
comment on view procjobs.table_retention is
  'How long rows of the application''s tables are kept, and what came of it last. Set with procjobs.set_table_policy.';
comment on column procjobs.table_retention.name is 'Name of the policy.';
comment on column procjobs.table_retention.table_name is 'The table.';
comment on column procjobs.table_retention.column_name is 'The column that says how old a row is.';
comment on column procjobs.table_retention.keep is 'How long rows are kept after that time.';
comment on column procjobs.table_retention.condition is 'What must be true of a row besides.';
comment on column procjobs.table_retention.action is 'delete or set.';
comment on column procjobs.table_retention.assignments is 'The values that set gives, by column.';
comment on column procjobs.table_retention.batch is 'Most rows in one transaction.';
comment on column procjobs.table_retention.oldest_first is 'Whether the oldest go first, or the newest.';
comment on column procjobs.table_retention.enabled is 'Whether it may be worked.';
comment on column procjobs.table_retention.run_as is 'Role with whose rights it is worked.';
comment on column procjobs.table_retention.description is 'What it is for.';
comment on column procjobs.table_retention.set_at is 'When it was set.';
comment on column procjobs.table_retention.set_by is 'Who set it.';
comment on column procjobs.table_retention.last_run_at is 'When it was last worked.';
comment on column procjobs.table_retention.last_run is 'What came of it: running, done, failed, stopped.';
comment on column procjobs.table_retention.last_rows is 'Rows deleted or set then.';
comment on column procjobs.table_retention.last_referenced is 'Rows that stayed since others refer to them, by constraint.';
comment on column procjobs.table_retention.fault is 'What is wrong with it: the last error, or why it does not fit its table any more.';
