-- Retention: which policy holds for what, and what was forgotten.

create view procjobs.retention as
with stated as (
  select p.*, s.state as of_state
  from procjobs.retention_policies p
  cross join unnest('{succeeded,failed,cancelled,aborted}'::text[]) as s(state)
  where p.state = s.state
    or p.state = 'all' and not exists (
      select
      from procjobs.retention_policies o
      where o.state = s.state
        and o.task is not distinct from p.task
        and o.queue is not distinct from p.queue
    )
)
select
  s.id,
  s.task::text as task,
  s.queue::text as queue,
  s.of_state as state,
  s.max_age,
  s.keep_last,
  case when s.task is null then array(
    select o.task::text from stated o where o.of_state = s.of_state and o.task is not null order by o.task
  ) else '{}' end as except_tasks,
  case when s.task is null and s.queue is null then array(
    select o.queue::text from stated o where o.of_state = s.of_state and o.queue is not null order by o.queue
  ) else '{}' end as except_queues,
  s.built_in,
  s.set_at,
  s.set_by
from stated s;
comment on view procjobs.retention is
  'How long jobs that ended are kept: one row for each final state of each policy. A task''s goes before its queue''s, that before the one of all others.';
comment on column procjobs.retention.id is 'The policy.';
comment on column procjobs.retention.task is 'Task whose jobs it is for; null: any.';
comment on column procjobs.retention.queue is 'Queue whose jobs it is for; null: any.';
comment on column procjobs.retention.state is 'Final state it is for: succeeded, failed, cancelled, aborted.';
comment on column procjobs.retention.max_age is 'Kept for so long; from a day on, until the day (UTC) is over. Null: not by age.';
comment on column procjobs.retention.keep_last is 'Only the last so many are kept, of the task, or of each queue. Null: not by number.';
comment on column procjobs.retention.except_tasks is 'Tasks with a policy of their own.';
comment on column procjobs.retention.except_queues is 'Queues with a policy of their own.';
comment on column procjobs.retention.built_in is 'Came with procjobs: for the history only, not for what stays in the job table.';
comment on column procjobs.retention.set_at is 'When it was set.';
comment on column procjobs.retention.set_by is 'Who set it.';

create view procjobs.retention_passes as
select
  l.id,
  l.at,
  l.what,
  l.actor,
  l.jobs,
  l.partitions,
  l.took,
  l.detail
from procjobs.retention_log l;
comment on view procjobs.retention_passes is 'What was forgotten or run again in bulk, when, by which policy or by whom. A pass that found nothing leaves no row.';
comment on column procjobs.retention_passes.id is 'Number of the row.';
comment on column procjobs.retention_passes.at is 'When.';
comment on column procjobs.retention_passes.what is
  'pass (of run_retention), delete_old_jobs, purge and redrive (of dead letters), set and drop (of a policy).';
comment on column procjobs.retention_passes.actor is 'Database user who did it.';
comment on column procjobs.retention_passes.jobs is 'How many jobs; of large partitions that were dropped, the planner''s estimate.';
comment on column procjobs.retention_passes.partitions is 'Days of the history that were dropped whole.';
comment on column procjobs.retention_passes.took is 'How long it took.';
comment on column procjobs.retention_passes.detail is 'Jobs by policy, or the filter.';
