-- Jobs in the words of applications that keep a queue table of their own: type, payload, and five statuses.

create view procjobs.job_queue as
select
  j.id,
  j.task as type,
  j.queue,
  j.args as payload,
  case j.status
    when 'todo' then 'PENDING'
    when 'doing' then 'PROCESSING'
    when 'aborting' then 'PROCESSING'
    when 'succeeded' then 'COMPLETED'
    when 'failed' then 'FAILED'
    else 'CANCELLED'
  end as status,
  j.attempts,
  j.max_attempts,
  coalesce(j.scheduled_at, j.created_at) as scheduled_at,
  j.finished_at as processed_at,
  j.error,
  j.created_at,
  greatest(j.created_at, j.started_at, j.finished_at) as updated_at
from procjobs.jobs j;
comment on view procjobs.job_queue is
  'procjobs.jobs in the words of applications with a queue table of their own: select * from procjobs.job_queue where type = ''SEND_NOTIFICATION'' order by id desc limit 20.';
comment on column procjobs.job_queue.id is 'The job''s number, as defer returns it.';
comment on column procjobs.job_queue.type is 'Its task.';
comment on column procjobs.job_queue.queue is 'Its queue.';
comment on column procjobs.job_queue.payload is 'Its arguments; only for procjobs_admin.';
comment on column procjobs.job_queue.status is
  'PENDING (waits, also for its time, a lock or a limit), PROCESSING (runs), COMPLETED, FAILED (a dead letter), CANCELLED (also aborted).';
comment on column procjobs.job_queue.attempts is 'Runs that ended.';
comment on column procjobs.job_queue.max_attempts is 'Runs it may have in all; null: as its task''s code says.';
comment on column procjobs.job_queue.scheduled_at is 'When it was, or is, to run.';
comment on column procjobs.job_queue.processed_at is 'When it ended; null before.';
comment on column procjobs.job_queue.error is 'The last error; its message only for procjobs_admin.';
comment on column procjobs.job_queue.created_at is 'When it was enqueued.';
comment on column procjobs.job_queue.updated_at is 'When it was enqueued, started or ended, whichever was last.';
