-- Retention of the application's own tables, and retries of dead letters by rule. Applied by 0011_table_retention.py.

create table procjobs.table_policies (
  name text primary key,
  table_name text not null,
  column_name text not null,
  keep interval not null,
  condition text,
  action text not null default 'delete',
  assignments jsonb,
  batch integer not null default 1000,
  oldest_first boolean not null default true,
  enabled boolean not null default true,
  run_as text not null,
  description text,
  set_at timestamptz not null,
  set_by text not null default session_user,
  constraint keep_not_negative check (keep >= interval '0'),
  constraint action_known check (action in ('delete', 'set')),
  constraint assignments_for_set check ((action = 'set') = (assignments is not null)),
  constraint batch_in_range check (batch between 1 and 10000)
);
comment on table procjobs.table_policies is
  'How long rows of the application''s tables are kept. Set with procjobs.set_table_policy, see procjobs.table_retention.';
comment on column procjobs.table_policies.name is 'Its name; what a schedule or function that works it is called.';
comment on column procjobs.table_policies.table_name is 'The table, with its schema.';
comment on column procjobs.table_policies.column_name is 'The column of time that says how old a row is; rows without a value stay.';
comment on column procjobs.table_policies.keep is 'Rows whose time lies further back are due; 0 for a time of expiry.';
comment on column procjobs.table_policies.condition is 'What must be true of a row besides, in SQL; its columns may be called t.column.';
comment on column procjobs.table_policies.action is 'delete, or set: the columns of assignments get their values.';
comment on column procjobs.table_policies.assignments is 'Values by column, for set. Rows that have them already are not touched.';
comment on column procjobs.table_policies.batch is 'Most rows in one transaction; fewer where these would take more than 50 ms.';
comment on column procjobs.table_policies.oldest_first is 'Whether the oldest rows go first, or the newest.';
comment on column procjobs.table_policies.enabled is 'Whether it may be worked.';
comment on column procjobs.table_policies.run_as is 'Role with whose rights it is worked.';

create table procjobs.table_retention_log (
  id bigint generated always as identity primary key,
  policy text not null,
  actor text not null default session_user,
  pid integer not null default pg_backend_pid(),
  began_at timestamptz not null,
  noted_at timestamptz not null,
  ended_at timestamptz,
  cutoff timestamptz not null,
  rows bigint not null default 0,
  expected bigint,
  batches integer not null default 0,
  slowest interval,
  passed_over bigint not null default 0,
  referenced jsonb,
  error text,
  vacuum_wanted boolean not null default false,
  vacuumed_at timestamptz
);
create index table_retention_log_policy on procjobs.table_retention_log (policy, id);
create index table_retention_log_began on procjobs.table_retention_log (began_at);
comment on table procjobs.table_retention_log is
  'Every run of a table''s policy, also while it runs; kept for a year. Read procjobs.table_retention_runs instead.';

create table procjobs.retry_rules (
  task varchar(128) not null default '',
  error_class text not null default '',
  rounds integer not null,
  wait interval not null,
  built_in boolean not null default false,
  set_at timestamptz not null,
  set_by text not null default session_user,
  primary key (task, error_class),
  constraint one_given check (task <> '' or error_class <> ''),
  constraint rounds_in_range check (rounds between 0 and 100),
  constraint wait_positive check (wait > interval '0')
);
comment on table procjobs.retry_rules is
  'Which dead letters procjobs.retry_failed_jobs lets run again: those whose error passes by itself. Set with procjobs.set_retry_rule.';
comment on column procjobs.retry_rules.task is 'Task whose jobs it is for; empty: any. A task''s rule goes before one for any.';
comment on column procjobs.retry_rules.error_class is 'Class of the last error; empty: any.';
comment on column procjobs.retry_rules.rounds is 'How often a dead letter gets all its attempts again; 0: never.';
comment on column procjobs.retry_rules.wait is 'How long after it failed; twice as long each further time.';
comment on column procjobs.retry_rules.built_in is 'Came with procjobs.';

-- Out of the box: what the network and a restarting server do to a job.
insert into procjobs.retry_rules (error_class, rounds, wait, built_in, set_at, set_by)
select e, 3, interval '10 minutes', true, statement_timestamp(), 'procjobs'
from unnest(array[
  'ConnectionError', 'ConnectionResetError', 'ConnectionRefusedError', 'ConnectionAbortedError', 'BrokenPipeError',
  'TimeoutError', 'gaierror', 'DatabaseUnavailable', 'OperationalError', 'DeliveryDeferred'
]) as e;

-- One run of a policy between two of its steps. Nothing of it is stored.
create type procjobs.cleaning as (
  run_id bigint,
  run_as text,
  caller text,
  path text,
  cutoff timestamptz,
  batch integer,
  finds text[],
  works text[],
  references_itself boolean,
  at integer,
  pass_rows bigint,
  reached text,
  beyond boolean,
  is_last boolean,
  tids tid[],
  next integer,
  found_rows bigint,
  size integer,
  rows bigint,
  batches integer,
  slowest interval,
  passed_over bigint,
  sqlstate text,
  error text,
  finished boolean
);
comment on type procjobs.cleaning is 'Where a run of a table''s policy stands, handed from step to step (procjobs.clean_step).';

-- The calendar queue keeps its last hundred jobs, and two hundred dead letters.
insert into procjobs.retention_policies (queue, state, keep_last, built_in, set_at, set_by)
values
  ('calendar', 'succeeded', 100, false, statement_timestamp(), 'procjobs'),
  ('calendar', 'failed', 200, false, statement_timestamp(), 'procjobs')
on conflict do nothing;
