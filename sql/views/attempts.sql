-- Runs that did not succeed, and those that did of jobs that were made to run again.

create view procjobs.attempts as
select
  a.id,
  a.job_id,
  a.attempt,
  a.outcome,
  a.error_class,
  case when (select procjobs.may_see_arguments()) then a.error_message end as error_message,
  case when (select procjobs.may_see_arguments()) then a.traceback end as traceback,
  a.worker_id,
  a.worker_name as worker,
  a.started_at,
  a.finished_at,
  a.finished_at - a.started_at as took,
  a.retry_at
from procjobs.job_attempts a;
comment on view procjobs.attempts is 'Every run that did not succeed, and those that did of jobs retried since: how it ended, error, worker, times.';
comment on column procjobs.attempts.id is 'Number of the row; a later run has a higher one.';
comment on column procjobs.attempts.job_id is 'The job: procjobs.jobs.id.';
comment on column procjobs.attempts.attempt is 'Which of the job''s runs it was, from 1; crashes do not count.';
comment on column procjobs.attempts.outcome is 'failed, crashed (its process died), cancelled, snoozed, released (given back at shutdown), discarded, superseded (a waiting job does the work), unreadable, succeeded (the job was retried since).';
comment on column procjobs.attempts.error_class is 'Class of the exception.';
comment on column procjobs.attempts.error_message is 'What the exception said. Only for procjobs_admin: it may quote arguments.';
comment on column procjobs.attempts.traceback is 'Where it was raised. Only for procjobs_admin.';
comment on column procjobs.attempts.worker_id is 'Who ran it: procjobs.workers.id.';
comment on column procjobs.attempts.worker is 'Name of that worker.';
comment on column procjobs.attempts.started_at is 'When the run was claimed.';
comment on column procjobs.attempts.finished_at is 'When it ended.';
comment on column procjobs.attempts.took is 'How long it ran.';
comment on column procjobs.attempts.retry_at is 'When the job was to run again; null: not again, or at once.';
