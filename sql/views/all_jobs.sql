-- All jobs in the columns of procrastinate_jobs, from the hot table and the history, for reports written for Procrastinate.

create view procjobs.all_jobs as
select
  j.id,
  j.queue_name,
  j.task_name,
  j.priority,
  j.lock,
  j.queueing_lock,
  case when (select procjobs.may_see_arguments()) then j.args end as args,
  j.status,
  j.scheduled_at,
  j.attempts,
  j.abort_requested,
  j.worker_id
from public.procrastinate_jobs j
union all
select
  h.id,
  h.queue_name,
  h.task_name,
  h.priority,
  h.lock,
  h.queueing_lock,
  case when (select procjobs.may_see_arguments()) then h.args end,
  h.status,
  h.scheduled_at,
  h.attempts,
  false,
  h.worker_id
from procjobs.job_history h;
comment on view procjobs.all_jobs is
  'All jobs in the columns of procrastinate_jobs, those that ended too: what Procrastinate''s shell and list_jobs show. procjobs.jobs says more.';
comment on column procjobs.all_jobs.id is 'What defer returned.';
comment on column procjobs.all_jobs.queue_name is 'Its queue.';
comment on column procjobs.all_jobs.task_name is 'Its task.';
comment on column procjobs.all_jobs.priority is 'Higher goes first within a queue.';
comment on column procjobs.all_jobs.lock is 'One running job a lock.';
comment on column procjobs.all_jobs.queueing_lock is 'At most one waiting job a queueing lock.';
comment on column procjobs.all_jobs.args is 'Its arguments. Only for procjobs_admin.';
comment on column procjobs.all_jobs.status is 'todo, doing, succeeded, failed, cancelled, aborted.';
comment on column procjobs.all_jobs.scheduled_at is 'Not before.';
comment on column procjobs.all_jobs.attempts is 'Runs that ended.';
comment on column procjobs.all_jobs.abort_requested is 'Whether somebody asked to stop the run; false for jobs in the history.';
comment on column procjobs.all_jobs.worker_id is 'Who runs it, or ran it last.';
