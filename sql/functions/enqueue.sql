-- Enqueueing for the Python client: many jobs in one statement.
-- Owns:        inserts into procrastinate_jobs whose arguments the client has checked.
-- Lock order:  only new rows; a unique index may wait for another transaction's equal key.

create or replace function procjobs.enqueue_jobs(
  p_tasks text[],
  p_queues text[],
  p_priorities integer[],
  p_locks text[],
  p_queueing_locks text[],
  p_args text[],
  p_scheduled_at timestamptz[]
)
returns setof bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Not as a SET clause: only a superuser may write one for a parameter that is not PostgreSQL's own.
  perform set_config('procjobs.args_checked', 'on', true);
  return query
  insert into public.procrastinate_jobs (task_name, queue_name, priority, lock, queueing_lock, args, scheduled_at)
  select i.task, i.queue, i.priority, i.lock, i.queueing_lock, i.args::jsonb, i.scheduled_at
  from unnest(p_tasks, p_queues, p_priorities, p_locks, p_queueing_locks, p_args, p_scheduled_at)
    with ordinality as i(task, queue, priority, lock, queueing_lock, args, scheduled_at, n)
  order by i.n
  returning id;
  perform set_config('procjobs.args_checked', '', true);
end
$$;
comment on function procjobs.enqueue_jobs(text[], text[], integer[], text[], text[], text[], timestamptz[]) is
  'Inserts jobs, one an array element, and returns their ids in order. The Python client calls it and has checked the arguments; '
  'by hand use procjobs.defer. Definer: the producer role has no rights on tables.';
