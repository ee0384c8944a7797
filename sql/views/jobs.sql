-- Jobs: waiting, running and ended, from the hot table and the history, as one.
-- Each half is one table without joins and conditions, so that conditions and `order by id desc limit` reach the indexes of
-- both. What is looked up for a job is looked up for those that are shown.

create view procjobs.jobs as
select
  j.id,
  j.queue_name::text as queue,
  j.task_name::text as task,
  j.status,
  j.state,
  j.priority,
  j.lock,
  j.queueing_lock,
  j.unique_key,
  j.tags,
  case when (select procjobs.may_see_arguments()) then j.args end as args,
  j.attempts,
  coalesce(j.max_attempts, (select p.max_attempts from procjobs.task_policies p where p.task = j.task_name)) as max_attempts,
  j.crashes::integer as crashes,
  j.scheduled_at,
  j.created_at,
  j.started_at,
  j.finished_at,
  j.worker_id,
  (select w.name from procjobs.worker_state w where w.id = j.worker_id) as worker,
  j.note,
  case when j.status <> 'succeeded' then (
    select concat_ws(': ', a.error_class, case when (select procjobs.may_see_arguments()) then a.error_message end)
    from procjobs.job_attempts a
    where a.job_id = j.id
      and a.error_class is not null
    order by a.id desc
    limit 1
  ) end as error,
  j.tenant,
  j.batch,
  case
    when j.held_by is null or (select procjobs.may_see_arguments()) then j.held_by
    -- Of a limit by an argument, its name alone.
    else coalesce(
      (select j.held_by from procjobs.limits l where l.name = split_part(j.held_by, ':', 1) and l.key in ('tenant', 'lock')),
      split_part(j.held_by, ':', 1))
  end as held_by,
  coalesce(j.timeout, (select p.timeout from procjobs.task_policies p where p.task = j.task_name)) as timeout,
  (select r.percent from procjobs.job_progress r where r.job_id = j.id) as progress,
  case when (select procjobs.may_see_arguments()) then (
    select r.message from procjobs.job_progress r where r.job_id = j.id
  ) end as progress_message,
  case when (select procjobs.may_see_arguments()) then j.result end as result
from (
  select
    w.id, w.queue_name, w.task_name, w.status,
    case w.status
      when 'todo' then case w.pj_waits_for
        when 'time' then 'scheduled' when 'lock' then 'blocked' when 'task' then 'parked' when 'limit' then 'limited'
        when 'pause' then 'paused' else 'waiting'
      end
      when 'doing' then 'running'
      else w.status::text
    end as state,
    w.priority, w.lock, w.queueing_lock, coalesce(w.pj_unique_key, w.pj_waiting_key) as unique_key, w.pj_tags as tags,
    w.args, w.attempts, w.pj_max_attempts as max_attempts, w.pj_crashes as crashes, w.scheduled_at,
    w.pj_created_at as created_at, w.pj_started_at as started_at, w.pj_finished_at as finished_at, w.worker_id,
    case
      when w.status in ('cancelled', 'aborted') then w.pj_cancel ->> 'reason'
      when w.status = 'succeeded' and w.pj_cancel is not null then concat_ws('; ',
        case when w.pj_cancel ? 'by' then procjobs.late_note(w.pj_cancel) end, w.pj_cancel ->> 'note')
      when w.abort_requested then concat_ws(': ', 'asked to stop by ' || (w.pj_cancel ->> 'by'), w.pj_cancel ->> 'reason')
    end as note,
    w.pj_tenant as tenant, w.pj_batch as batch, case when w.pj_waits_for = 'limit' then w.pj_held_by end as held_by,
    w.pj_timeout as timeout, w.pj_result as result
  from public.procrastinate_jobs w
  union all
  select
    h.id, h.queue_name, h.task_name, h.status,
    -- As in the constraint history_state, by which the planner leaves the history out for jobs that have not ended.
    case h.status when 'succeeded' then 'succeeded' when 'failed' then 'failed' when 'cancelled' then 'cancelled' else 'aborted' end,
    h.priority, h.lock, h.queueing_lock, coalesce(h.unique_key, h.waiting_key), h.tags, h.args, h.attempts, h.max_attempts,
    h.crashes, h.scheduled_at, h.created_at, h.started_at, h.finished_at, h.worker_id, h.note, h.tenant, h.batch, null,
    h.timeout, h.result
  from procjobs.job_history h
) j;
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
comment on column procjobs.jobs.held_by is 'The limit it met last, while it waits for one: its name and, for limits by key, the value; a value of arguments only for procjobs_admin.';
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
