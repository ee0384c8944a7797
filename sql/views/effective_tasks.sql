-- How tasks are treated: what their code says, what was set over it, and what holds. The one place that merges both.

create view procjobs.task_policies as
select
  t.name::text as task,
  coalesce(s.queue, t.queue)::text as queue,
  coalesce(s.priority, t.priority) as priority,
  coalesce(s.max_attempts, t.max_attempts) as max_attempts,
  coalesce(s.backoff_base, t.backoff_base) as backoff_base,
  coalesce(s.backoff_cap, t.backoff_cap) as backoff_cap,
  coalesce(s.backoff_jitter, t.backoff_jitter) as backoff_jitter,
  coalesce(s.timeout, t.timeout) as timeout,
  jsonb_strip_nulls(jsonb_build_object(
    'queue', t.queue, 'priority', t.priority, 'max_attempts', t.max_attempts, 'backoff_base', t.backoff_base,
    'backoff_cap', t.backoff_cap, 'backoff_jitter', t.backoff_jitter, 'timeout', t.timeout
  )) as registered,
  jsonb_strip_nulls(jsonb_build_object(
    'queue', s.queue, 'priority', s.priority, 'max_attempts', s.max_attempts, 'backoff_base', s.backoff_base,
    'backoff_cap', s.backoff_cap, 'backoff_jitter', s.backoff_jitter, 'timeout', s.timeout
  )) as settings,
  s.set_at,
  s.set_by,
  s.paused_at,
  s.paused_by,
  s.pause_reason,
  t.execution,
  t.description,
  t.routine,
  t.run_as
from procjobs.tasks t
left join procjobs.task_settings s on s.task = t.name;
comment on view procjobs.task_policies is
  'How jobs of each task are treated: select task, registered, settings, timeout from procjobs.task_policies. Set with procjobs.set_task.';
comment on column procjobs.task_policies.task is 'Name of the task.';
comment on column procjobs.task_policies.queue is 'Queue of new jobs that name none.';
comment on column procjobs.task_policies.priority is 'Priority of new jobs that name none.';
comment on column procjobs.task_policies.max_attempts is 'Runs in all, the first included. Null: the task''s strategy decides in Python.';
comment on column procjobs.task_policies.backoff_base is 'Wait before the second run; it doubles with each further run.';
comment on column procjobs.task_policies.backoff_cap is 'The longest wait.';
comment on column procjobs.task_policies.backoff_jitter is 'Whether each wait is drawn evenly between nothing and the computed one.';
comment on column procjobs.task_policies.timeout is 'How long one run may take. Null: as long as it likes.';
comment on column procjobs.task_policies.registered is 'What the code says, as JSON.';
comment on column procjobs.task_policies.settings is 'What was set over it, as JSON; {} is nothing.';
comment on column procjobs.task_policies.set_at is 'When that was changed last.';
comment on column procjobs.task_policies.set_by is 'By whom.';
comment on column procjobs.task_policies.paused_at is 'Since when no worker claims its jobs; null: it is not paused.';
comment on column procjobs.task_policies.paused_by is 'Who paused it.';
comment on column procjobs.task_policies.pause_reason is 'Why.';
comment on column procjobs.task_policies.execution is 'Where it runs: async, thread, process or sql.';
comment on column procjobs.task_policies.description is 'First line of its docstring.';
comment on column procjobs.task_policies.routine is 'Function or procedure that is its body, of an SQL task.';
comment on column procjobs.task_policies.run_as is 'Role with whose rights that runs; null: the worker''s.';
