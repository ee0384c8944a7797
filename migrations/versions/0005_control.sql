-- Timeouts, settings of tasks, results, progress, and actions on many jobs. Applied by 0005_control.py.

alter table public.procrastinate_jobs
  add column pj_timeout interval,
  add column pj_deadline timestamptz,
  add column pj_result jsonb,
  add column pj_awaited boolean not null default false;
comment on column public.procrastinate_jobs.pj_timeout is 'How long one run may take, over the task''s own setting. Null: the task''s.';
comment on column public.procrastinate_jobs.pj_deadline is 'When the current run must be over. Null: it has no timeout.';
comment on column public.procrastinate_jobs.pj_result is 'What the task returned, for jobs that stay in this table with finished_jobs = keep.';
comment on column public.procrastinate_jobs.pj_awaited is 'Somebody waits for the end of the job: it is announced by NOTIFY.';
create index pj_jobs_deadline on public.procrastinate_jobs (pj_deadline)
  where status = 'doing' and pj_deadline is not null;

alter table procjobs.job_history
  add column timeout interval,
  add column result jsonb;
comment on column procjobs.job_history.timeout is 'How long one run might take, over the task''s own setting.';
comment on column procjobs.job_history.result is 'What the task returned, as JSON.';

alter table procjobs.tasks
  add column timeout interval;
comment on column procjobs.tasks.timeout is 'How long one run may take. Null: as long as it likes.';

create table procjobs.task_settings (
  task varchar(128) primary key,
  queue varchar(128),
  priority integer,
  max_attempts integer,
  backoff_base interval,
  backoff_cap interval,
  backoff_jitter boolean,
  timeout interval,
  set_at timestamptz,
  set_by text,
  paused_at timestamptz,
  paused_by text,
  pause_reason text,
  constraint max_attempts_positive check (max_attempts > 0),
  constraint timeout_positive check (timeout > interval '0')
);
comment on table procjobs.task_settings is
  'What was set for a task over what its code says, and whether it is paused. Set with procjobs.set_task and pause_task, see procjobs.task_policies.';
comment on column procjobs.task_settings.set_at is 'When a setting was changed last.';
comment on column procjobs.task_settings.set_by is 'By whom.';

create table procjobs.job_progress (
  job_id bigint primary key,
  lease integer not null,
  percent real,
  message text,
  reported_at timestamptz not null
) with (fillfactor = 70);
comment on table procjobs.job_progress is 'How far a job says it has come: the last report of its last run that made one.';

create table procjobs.bulk_actions (
  id bigint generated always as identity primary key,
  action text not null,
  filter jsonb not null,
  reason text,
  actor text not null default session_user,
  started_at timestamptz not null,
  ended_at timestamptz not null,
  jobs integer not null
);
comment on table procjobs.bulk_actions is 'Actions on many jobs at once, one row a batch: who did what to the jobs that a filter chose. Read procjobs.bulk_log.';
