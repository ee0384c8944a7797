-- SQL jobs: tasks whose body is a routine in SQL, and sessions that run them. Applied by 0010_sql_jobs.py.

alter table procjobs.tasks
  add column routine text,
  add column run_as text;
comment on column procjobs.tasks.routine is 'Function or procedure that is the task''s body, with schema and argument types. Null: the body is Python.';
comment on column procjobs.tasks.run_as is 'Role with whose rights the routine runs. Null: those of the worker that runs it.';
create index tasks_sql on procjobs.tasks (name) where routine is not null;

alter table procjobs.worker_state
  add column runs_sql boolean not null default false,
  add column sql_tasks text[],
  add column login text,
  add column stop_sent_at timestamptz,
  add column last_words text;
comment on column procjobs.worker_state.kind is
  'worker: runs jobs, alive while its heart beats. scheduler: keeps time only. session: a session of PostgreSQL in procjobs.run_sql_jobs, alive while it holds its advisory lock; pid is its server process.';
comment on column procjobs.worker_state.runs_sql is 'Whether it runs SQL tasks beside the tasks it knows.';
comment on column procjobs.worker_state.sql_tasks is 'SQL tasks that it may run, as of its last heartbeat; null is none.';
comment on column procjobs.worker_state.login is 'As whom it is logged in: it decides which SQL tasks it may run.';
comment on column procjobs.worker_state.stop_sent_at is 'When a session was last told to stop what it runs.';
comment on column procjobs.worker_state.last_words is 'The error with which a session ended, as pg_cron heard it.';

-- In a procedure that commits, what began last is the transaction: as procjobs.clock().
alter table public.procrastinate_jobs
  alter column pj_created_at set default greatest(statement_timestamp(), transaction_timestamp());
