-- Workers and schedulers: alive, leaving and gone.

create view procjobs.workers as
select
  w.id,
  w.name,
  w.host,
  w.pid,
  w.version,
  case
    when w.dead_at is not null then 'dead'
    when w.stopped_at is not null then 'stopped'
    when w.last_heartbeat < procjobs.clock() - w.lease then 'silent'
    when w.draining_at is not null then 'draining'
    else 'alive'
  end as state,
  w.queues,
  w.tasks,
  w.concurrency,
  (
    select count(*)::integer
    from public.procrastinate_jobs j
    where j.worker_id = w.id
      and j.status = 'doing'
  ) as running,
  w.started_at,
  w.last_heartbeat,
  w.heartbeat_every,
  w.lease,
  coalesce(w.dead_at, w.stopped_at) as ended_at
from procjobs.worker_state w
where w.kind <> 'scheduler';
comment on view procjobs.workers is 'Workers that are or were there, for seven days after they left.';
comment on column procjobs.workers.id is 'Given at registration; a worker that comes back after it was declared dead gets another.';
comment on column procjobs.workers.name is 'Name it was started with.';
comment on column procjobs.workers.host is 'Machine it runs on.';
comment on column procjobs.workers.pid is 'Its process there.';
comment on column procjobs.workers.version is 'Version of procjobs it runs.';
comment on column procjobs.workers.state is
  'alive, draining (claims no more, finishes what it runs), silent (no heartbeat for its lease), stopped (left in order), dead (its jobs were given to others).';
comment on column procjobs.workers.queues is 'Queues it claims from; null: all.';
comment on column procjobs.workers.tasks is 'Tasks it knows.';
comment on column procjobs.workers.concurrency is 'How many jobs it runs at once.';
comment on column procjobs.workers.running is 'How many it runs now.';
comment on column procjobs.workers.started_at is 'When it registered.';
comment on column procjobs.workers.last_heartbeat is 'When it was last heard of.';
comment on column procjobs.workers.heartbeat_every is 'How often it is to be heard of.';
comment on column procjobs.workers.lease is 'Silence after which it is suspected.';
comment on column procjobs.workers.ended_at is 'When it left or was declared dead.';

create view procjobs.schedulers as
select
  w.id,
  w.name,
  w.host,
  w.pid,
  w.version,
  case
    when w.dead_at is not null then 'dead'
    when w.stopped_at is not null then 'stopped'
    when w.last_heartbeat < procjobs.clock() - w.lease then 'silent'
    else 'alive'
  end as state,
  cardinality(w.schedules) as declares,
  w.started_at,
  w.last_heartbeat,
  coalesce(w.dead_at, w.stopped_at) as ended_at
from procjobs.worker_state w
where w.kind = 'scheduler';
comment on view procjobs.schedulers is 'Processes that keep time and run no job, for seven days after they left. Every worker keeps time, too.';
comment on column procjobs.schedulers.id is 'Given at registration, as to workers.';
comment on column procjobs.schedulers.name is 'Name it was started with.';
comment on column procjobs.schedulers.host is 'Machine it runs on.';
comment on column procjobs.schedulers.pid is 'Its process there.';
comment on column procjobs.schedulers.version is 'Version of procjobs it runs.';
comment on column procjobs.schedulers.state is 'alive, silent (no heartbeat for its lease), stopped (left in order), dead.';
comment on column procjobs.schedulers.declares is 'How many schedules its code declares.';
comment on column procjobs.schedulers.started_at is 'When it registered.';
comment on column procjobs.schedulers.last_heartbeat is 'When it was last heard of.';
comment on column procjobs.schedulers.ended_at is 'When it left or was declared dead.';
