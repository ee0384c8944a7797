-- Jobs: waiting, running and ended, from the hot table and the history, as one.
-- Each half is one table without joins, so that conditions and `order by id desc limit` reach the indexes of both.

create view procjobs.jobs as
select
  j.id,
  j.queue_name::text as queue,
  j.task_name::text as task,
  j.status,
  case j.status
    when 'todo' then case j.pj_waits_for
      when 'time' then 'scheduled' when 'lock' then 'blocked' when 'task' then 'parked' when 'limit' then 'limited'
      when 'pause' then 'paused' else 'waiting'
    end
    when 'doing' then 'running'
    else j.status::text
  end as state,
  j.priority,
  j.lock,
  j.queueing_lock,
  coalesce(j.pj_unique_key, j.pj_waiting_key) as unique_key,
  j.pj_tags as tags,
  case when (select procjobs.may_see_arguments()) then j.args end as args,
  j.attempts,
  coalesce(j.pj_max_attempts, (select p.max_attempts from procjobs.task_policies p where p.task = j.task_name)) as max_attempts,
  j.pj_crashes::integer as crashes,
  j.scheduled_at,
  j.pj_created_at as created_at,
  j.pj_started_at as started_at,
  j.pj_finished_at as finished_at,
  j.worker_id,
  (select w.name from procjobs.worker_state w where w.id = j.worker_id) as worker,
  case
    when j.status in ('cancelled', 'aborted') then j.pj_cancel ->> 'reason'
    when j.status = 'succeeded' and j.pj_cancel is not null then concat_ws('; ',
      case when j.pj_cancel ? 'by' then procjobs.late_note(j.pj_cancel) end, j.pj_cancel ->> 'note')
    when j.abort_requested then concat_ws(': ', 'asked to stop by ' || (j.pj_cancel ->> 'by'), j.pj_cancel ->> 'reason')
  end as note,
  case when j.status <> 'succeeded' then (
    select concat_ws(': ', a.error_class, case when (select procjobs.may_see_arguments()) then a.error_message end)
    from procjobs.job_attempts a
    where a.job_id = j.id
      and a.error_class is not null
    order by a.id desc
    limit 1
  ) end as error,
  j.pj_tenant as tenant,
  j.pj_batch as batch,
  case when j.pj_waits_for = 'limit' then j.pj_held_by end as held_by,
  coalesce(j.pj_timeout, (select p.timeout from procjobs.task_policies p where p.task = j.task_name)) as timeout,
  (select r.percent from procjobs.job_progress r where r.job_id = j.id) as progress,
  case when (select procjobs.may_see_arguments()) then (
    select r.message from procjobs.job_progress r where r.job_id = j.id
  ) end as progress_message,
  case when (select procjobs.may_see_arguments()) then j.pj_result end as result
from public.procrastinate_jobs j
union all
select
  h.id,
  h.queue_name::text,
  h.task_name::text,
  h.status,
  h.status::text,
  h.priority,
  h.lock,
  h.queueing_lock,
  coalesce(h.unique_key, h.waiting_key),
  h.tags,
  case when (select procjobs.may_see_arguments()) then h.args end,
  h.attempts,
  coalesce(h.max_attempts, (select p.max_attempts from procjobs.task_policies p where p.task = h.task_name)),
  h.crashes::integer,
  h.scheduled_at,
  h.created_at,
  h.started_at,
  h.finished_at,
  h.worker_id,
  (select w.name from procjobs.worker_state w where w.id = h.worker_id),
  h.note,
  case when h.status <> 'succeeded' then (
    select concat_ws(': ', a.error_class, case when (select procjobs.may_see_arguments()) then a.error_message end)
    from procjobs.job_attempts a
    where a.job_id = h.id
      and a.error_class is not null
    order by a.id desc
    limit 1
  ) end,
  h.tenant,
  h.batch,
  null,
  coalesce(h.timeout, (select p.timeout from procjobs.task_policies p where p.task = h.task_name)),
  (select r.percent from procjobs.job_progress r where r.job_id = h.id),
  case when (select procjobs.may_see_arguments()) then (
    select r.message from procjobs.job_progress r where r.job_id = h.id
  ) end,
  case when (select procjobs.may_see_arguments()) then h.result end
from procjobs.job_history h;
comment on view procjobs.jobs is
  'All jobs, waiting, running and ended: select * from procjobs.jobs where state = ''failed'' order by id desc limit 20.';
comment on column procjobs.jobs.id is 'What defer returned.';
comment on column procjobs.jobs.queue is 'Queue it waits in; workers may be bound to some queues.';
comment on column procjobs.jobs.task is 'Name of the task it runs.';
comment on column procjobs.jobs.status is 'Procrastinate''s word: todo, doing, succeeded, failed, cancelled, aborted.';
comment on column procjobs.jobs.state is
  'waiting (a worker may take it), scheduled (not due), blocked (its lock is held), parked (no worker knows its task), limited (see held_by), paused (its task is), running, succeeded, failed (dead letter), cancelled (before it ran), aborted (while it ran).';
comment on column procjobs.jobs.priority is 'Higher goes first within a queue.';
comment on column procjobs.jobs.lock is 'One running job a lock, in order of priority and id.';
comment on column procjobs.jobs.queueing_lock is 'At most one waiting job a queueing lock.';
comment on column procjobs.jobs.unique_key is 'At most one waiting or running job a key, or as unique_while said.';
comment on column procjobs.jobs.tags is 'Words to find it by.';
comment on column procjobs.jobs.args is 'Arguments of the task. Only for procjobs_admin.';
comment on column procjobs.jobs.attempts is 'Runs that ended; a crash or a shutdown does not count.';
comment on column procjobs.jobs.max_attempts is 'Runs allowed in all: the job''s own limit, else the task''s. Null: the task''s strategy decides in Python.';
comment on column procjobs.jobs.crashes is 'Runs that ended because the worker died; the third is the last.';
comment on column procjobs.jobs.scheduled_at is 'Not before; for a retry, when it is due.';
comment on column procjobs.jobs.created_at is 'When it was enqueued.';
comment on column procjobs.jobs.started_at is 'When the current or last run began.';
comment on column procjobs.jobs.finished_at is 'When it ended for good.';
comment on column procjobs.jobs.worker_id is 'Who runs it, or ran it last: procjobs.workers.id.';
comment on column procjobs.jobs.worker is 'Name of that worker, while it is remembered.';
comment on column procjobs.jobs.note is 'Why it ended as it did, or who asked it to stop.';
comment on column procjobs.jobs.error is 'Class of the last error; for procjobs_admin also its message.';
comment on column procjobs.jobs.tenant is 'Whom it is for.';
comment on column procjobs.jobs.batch is 'The batch it belongs to: procjobs.batches.id.';
comment on column procjobs.jobs.held_by is 'The limit it met last, while it waits for one.';
comment on column procjobs.jobs.timeout is 'How long one run may take: the job''s own, else the task''s.';
comment on column procjobs.jobs.progress is 'Percent done, as the task reported last.';
comment on column procjobs.jobs.progress_message is 'What the task said with it. Only for procjobs_admin.';
comment on column procjobs.jobs.result is 'What the task returned. Only for procjobs_admin.';

create view procjobs.dead_letters as
select
  j.id,
  j.queue_name::text as queue,
  j.task_name::text as task,
  j.priority,
  j.pj_tags as tags,
  case when (select procjobs.may_see_arguments()) then j.args end as args,
  j.attempts,
  coalesce(j.pj_max_attempts, (select p.max_attempts from procjobs.task_policies p where p.task = j.task_name)) as max_attempts,
  j.pj_crashes::integer as crashes,
  j.pj_created_at as created_at,
  j.pj_finished_at as failed_at,
  (select w.name from procjobs.worker_state w where w.id = j.worker_id) as worker,
  (
    select concat_ws(': ', a.error_class, case when (select procjobs.may_see_arguments()) then a.error_message end)
    from procjobs.job_attempts a
    where a.job_id = j.id
      and a.error_class is not null
    order by a.id desc
    limit 1
  ) as error,
  j.pj_fingerprint as fingerprint
from public.procrastinate_jobs j
where j.status = 'failed';
comment on view procjobs.dead_letters is
  'Jobs that failed for good and wait for somebody to look: select procjobs.retry(id) from procjobs.dead_letters where task = ''...''.';
comment on column procjobs.dead_letters.id is 'The job: procjobs.jobs.id.';
comment on column procjobs.dead_letters.queue is 'Its queue.';
comment on column procjobs.dead_letters.task is 'Its task.';
comment on column procjobs.dead_letters.priority is 'Its priority.';
comment on column procjobs.dead_letters.tags is 'Its tags.';
comment on column procjobs.dead_letters.args is 'Its arguments. Only for procjobs_admin.';
comment on column procjobs.dead_letters.attempts is 'Runs it had.';
comment on column procjobs.dead_letters.max_attempts is 'Runs it was allowed.';
comment on column procjobs.dead_letters.crashes is 'Runs that took their worker with them.';
comment on column procjobs.dead_letters.created_at is 'When it was enqueued.';
comment on column procjobs.dead_letters.failed_at is 'When it failed for good.';
comment on column procjobs.dead_letters.worker is 'Who ran it last.';
comment on column procjobs.dead_letters.error is 'Class of the last error; for procjobs_admin also its message.';
comment on column procjobs.dead_letters.fingerprint is 'Equal for equal errors: procjobs.dead_letter_groups has them together.';
