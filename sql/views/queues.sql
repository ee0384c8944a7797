-- Queues: what waits in each, and whether workers may claim from it.

create view procjobs.queues as
with counted as (
  select
    j.queue_name as name,
    count(*) filter (where j.status = 'todo' and j.pj_waits_for is null) as waiting,
    count(*) filter (where j.status = 'todo' and j.pj_waits_for = 'time') as scheduled,
    count(*) filter (where j.status = 'todo' and j.pj_waits_for in ('lock', 'limit')) as blocked,
    count(*) filter (where j.status = 'todo' and j.pj_waits_for = 'task') as parked,
    count(*) filter (where j.status = 'doing') as running,
    count(*) filter (where j.status = 'failed') as failed,
    min(greatest(j.pj_created_at, j.scheduled_at)) filter (where j.status = 'todo' and j.pj_waits_for is null) as waits_since
  from public.procrastinate_jobs j
  group by j.queue_name
),
named as (
  select c.name from counted c
  union
  select s.name from procjobs.queue_settings s
  union
  select t.queue from procjobs.tasks t
)
select
  n.name::text as name,
  coalesce(c.waiting, 0) as waiting,
  coalesce(c.scheduled, 0) as scheduled,
  coalesce(c.blocked, 0) as blocked,
  coalesce(c.parked, 0) as parked,
  coalesce(c.running, 0) as running,
  coalesce(c.failed, 0) as failed,
  procjobs.clock() - c.waits_since as oldest_wait,
  (
    select count(*)::integer
    from procjobs.worker_state w
    where (w.queues is null or n.name = any (w.queues))
      and w.dead_at is null
      and w.stopped_at is null
      and w.draining_at is null
      and w.last_heartbeat >= procjobs.clock() - w.lease
  ) as workers,
  s.paused_at,
  s.paused_by,
  s.pause_reason
from named n
left join counted c on c.name = n.name
left join procjobs.queue_settings s on s.name = n.name;
comment on view procjobs.queues is 'Queues that hold jobs, that tasks use, or that were paused: how many jobs in which state, and who works on them.';
comment on column procjobs.queues.name is 'Name of the queue.';
comment on column procjobs.queues.waiting is 'Jobs that a worker may take now.';
comment on column procjobs.queues.scheduled is 'Jobs that are not due yet, retries included.';
comment on column procjobs.queues.blocked is 'Jobs whose lock is held, or whose limit is reached.';
comment on column procjobs.queues.parked is 'Jobs whose task no worker knew.';
comment on column procjobs.queues.running is 'Jobs that run.';
comment on column procjobs.queues.failed is 'Dead letters.';
comment on column procjobs.queues.oldest_wait is 'How long the oldest job that may be taken has waited.';
comment on column procjobs.queues.workers is 'Live workers that claim from it.';
comment on column procjobs.queues.paused_at is 'Since when it is paused; null: it is not.';
comment on column procjobs.queues.paused_by is 'Who paused it.';
comment on column procjobs.queues.pause_reason is 'Why.';
