-- Retention, and dead letters by their error. Applied by 0007_retention.py.

create table procjobs.retention_policies (
  id bigint generated always as identity primary key,
  queue varchar(128),
  task varchar(128),
  state text not null default 'all',
  max_age interval,
  keep_last integer,
  built_in boolean not null default false,
  set_at timestamptz not null,
  set_by text not null default session_user,
  constraint one_scope check (queue is null or task is null),
  constraint state_known check (state in ('all', 'succeeded', 'failed', 'cancelled', 'aborted')),
  constraint max_age_not_negative check (max_age >= interval '0'),
  constraint keep_last_not_negative check (keep_last >= 0)
);
create unique index retention_policies_scope on procjobs.retention_policies (coalesce(task, ''), coalesce(queue, ''), state);
comment on table procjobs.retention_policies is
  'How long jobs that ended are kept. Set with procjobs.set_retention, see procjobs.retention. A task''s policy goes before its queue''s, that before the default; a state''s before that of all.';
comment on column procjobs.retention_policies.queue is 'Queue whose jobs it is for; null with a null task is the default.';
comment on column procjobs.retention_policies.task is 'Task whose jobs it is for.';
comment on column procjobs.retention_policies.state is 'succeeded, failed, cancelled, aborted, or all: each of them for itself.';
comment on column procjobs.retention_policies.max_age is 'Forgotten when they ended longer ago. Null: not by age.';
comment on column procjobs.retention_policies.keep_last is 'Only the last so many are kept. Null: not by number. Both null: for ever.';
comment on column procjobs.retention_policies.built_in is 'Came with procjobs: it is for the history only, and leaves alone what stays in the job table.';

-- Out of the box: a week of history; dead letters wait for somebody to look.
insert into procjobs.retention_policies (state, max_age, built_in, set_at, set_by)
values
  ('all', interval '7 days', true, statement_timestamp(), 'procjobs'),
  ('failed', null, true, statement_timestamp(), 'procjobs');

create table procjobs.retention_marks (
  policy_id bigint not null references procjobs.retention_policies (id) on delete cascade,
  state text not null,
  queue text not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  jobs bigint not null,
  primary key (policy_id, state, queue, last_at)
);
comment on table procjobs.retention_marks is
  'Where the jobs of a policy with keep_last lie in time, counted once as they come: the last so many are found without a look at the others.';
comment on column procjobs.retention_marks.queue is 'Queue that is counted; empty for the policy of a task, which counts over all queues.';

create table procjobs.retention_log (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  what text not null,
  actor text not null default session_user,
  jobs bigint not null default 0,
  partitions text[],
  took interval,
  detail jsonb,
  constraint what_known check (what in ('pass', 'delete_old_jobs', 'redrive', 'purge', 'set', 'drop'))
);
create index retention_log_at on procjobs.retention_log (at);
comment on table procjobs.retention_log is 'What was forgotten, when, by which policy or by whom; kept for a year. Read procjobs.retention_passes instead.';

create index job_history_finished on procjobs.job_history (finished_at);

alter table procjobs.job_attempts add column fingerprint text;
comment on column procjobs.job_attempts.fingerprint is 'Equal for equal errors: class and message without numbers, names and paths (procjobs.error_fingerprint).';

alter table public.procrastinate_jobs add column pj_fingerprint text;
comment on column public.procrastinate_jobs.pj_fingerprint is 'Of a dead letter: the fingerprint of its last error.';

-- When adopted jobs ended is in upstream's events.
update public.procrastinate_jobs j
set pj_finished_at = e.at
from (
  select job_id, max(at) as at
  from public.procrastinate_events
  group by job_id
) e
where e.job_id = j.id
  and j.status not in ('todo', 'doing')
  and j.pj_finished_at is null;

create index pj_jobs_ended on public.procrastinate_jobs (pj_finished_at)
  where status in ('succeeded', 'failed', 'cancelled', 'aborted');
create index pj_jobs_dead_error on public.procrastinate_jobs (pj_fingerprint, id)
  where status = 'failed';
