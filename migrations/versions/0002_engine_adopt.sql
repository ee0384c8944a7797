-- Tasks of which jobs are found: known by name only, until a worker registers them with their signature.

insert into procjobs.tasks (name, queue, execution, registered_at, registered_by)
select
  task_name,
  mode() within group (order by queue_name),
  'unknown',
  statement_timestamp(),
  'adoption'
from public.procrastinate_jobs
group by task_name
order by task_name;
