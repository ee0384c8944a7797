-- Unique keys that outlive their job, and batches. Applied by 0006_uniqueness.py.

alter table public.procrastinate_jobs
  add column pj_waiting_key text,
  add column pj_batch bigint;
comment on column public.procrastinate_jobs.pj_waiting_key is 'At most one waiting job has this key; a running one does not count.';
comment on column public.procrastinate_jobs.pj_batch is 'The batch it belongs to: procjobs.batches.id.';

create unique index pj_jobs_waiting_key on public.procrastinate_jobs (pj_waiting_key)
  where pj_waiting_key is not null and status = 'todo';
create index pj_jobs_batch on public.procrastinate_jobs (pj_batch, status, id)
  where pj_batch is not null and status in ('todo', 'doing');

alter table procjobs.job_history
  add column waiting_key text,
  add column batch bigint;
create index job_history_batch on procjobs.job_history (batch)
  where batch is not null;

alter table procjobs.tasks add column uniqueness jsonb;
comment on column procjobs.tasks.uniqueness is
  'When two of its jobs are the same: {"args": names or null for all, "period": seconds or null, "while": waiting | unfinished | retained}. Null: never.';

create table procjobs.unique_keys (
  key text primary key,
  job_id bigint not null,
  until timestamptz,
  while_retained boolean not null default false
);
comment on table procjobs.unique_keys is 'Keys that outlive their job: unique_for and unique_while => ''retained''.';
comment on column procjobs.unique_keys.until is 'Until then the key stands for the job, whatever became of it.';
comment on column procjobs.unique_keys.while_retained is 'The key also stands for the job as long as the job is in the job table or the history.';

create table procjobs.job_batches (
  id bigint generated always as identity primary key,
  name text not null,
  on_finish jsonb,
  on_success jsonb,
  on_discard jsonb,
  succeeded bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  created_at timestamptz not null,
  created_by text not null default session_user,
  sealed_at timestamptz,
  finished_at timestamptz,
  callback_ids bigint[],
  problem text
);
create index job_batches_open on procjobs.job_batches (id)
  where finished_at is null;
comment on table procjobs.job_batches is 'Batches. Read procjobs.batches instead: the counts here lack what batch_ends holds.';
comment on column procjobs.job_batches.on_finish is 'The job to enqueue when all jobs of the batch have ended, as an element of defer_many''s array.';
comment on column procjobs.job_batches.on_success is 'The same, when all of them succeeded.';
comment on column procjobs.job_batches.on_discard is 'The same, when at least one failed or was cancelled.';
comment on column procjobs.job_batches.callback_ids is 'The jobs that were enqueued when it finished.';
comment on column procjobs.job_batches.problem is 'Why a callback could not be enqueued.';

create table procjobs.batch_ends (
  batch bigint not null,
  succeeded integer not null default 0,
  failed integer not null default 0,
  cancelled integer not null default 0,
  reached xid8 not null default pg_current_xact_id()
);
create index batch_ends_batch on procjobs.batch_ends (batch);
create index batch_ends_reached on procjobs.batch_ends (reached);
comment on table procjobs.batch_ends is 'What statements added to the counts of batches: workers that end jobs of one batch do not wait for each other. sweep_batches adds it up.';
comment on column procjobs.batch_ends.reached is 'The transaction that ended the jobs.';
