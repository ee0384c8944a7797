-- Circuit breakers, and who waits for them.

create view procjobs.breaker_list as
select
  b.name,
  b.state,
  b.since,
  b.retry_at,
  (
    select min(g.job_id) from procjobs.limit_grants g
    where g.key = procjobs.breaker_limit(b.name) and b.state = 'half_open'
  ) as probe_job,
  (
    select count(*)::integer
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_held_by = procjobs.breaker_limit(b.name)
  ) as waiting,
  b.openings,
  case when b.window_from > procjobs.clock() - b.per then b.failed else 0 end as failed,
  case when b.window_from > procjobs.clock() - b.per then b.succeeded else 0 end as succeeded,
  b.last_failure_at,
  case when (select procjobs.may_see_arguments()) then b.last_error end as last_error,
  b.tasks,
  b.queue,
  b.tag,
  b.failures,
  b.rate,
  b.per,
  b.cool_down,
  b.longest,
  b.opened_by,
  b.set_at,
  b.set_by
from procjobs.breakers b;
comment on view procjobs.breaker_list is 'Circuit breakers: select * from procjobs.breaker_list where state <> ''closed''.';
comment on column procjobs.breaker_list.name is 'Name given to set_breaker.';
comment on column procjobs.breaker_list.state is 'closed: jobs run; open: they wait; half_open: one runs as a probe.';
comment on column procjobs.breaker_list.since is 'Since when it is in this state.';
comment on column procjobs.breaker_list.retry_at is 'When an open one becomes half open; infinity: not by itself.';
comment on column procjobs.breaker_list.probe_job is 'The job that tries for all others.';
comment on column procjobs.breaker_list.waiting is 'Jobs that met it and wait.';
comment on column procjobs.breaker_list.openings is 'How often it opened since it was closed last.';
comment on column procjobs.breaker_list.failed is 'Failures that count now.';
comment on column procjobs.breaker_list.succeeded is 'Successes since the first of them.';
comment on column procjobs.breaker_list.last_failure_at is 'When its dependency failed last.';
comment on column procjobs.breaker_list.last_error is 'What that failure said; only for procjobs_admin.';
comment on column procjobs.breaker_list.tasks is 'Tasks whose jobs need it; null is any.';
comment on column procjobs.breaker_list.queue is 'Queue whose jobs need it; null is any.';
comment on column procjobs.breaker_list.tag is 'Only jobs that carry this tag need it; null is any.';
comment on column procjobs.breaker_list.failures is 'Failures within per that open it ...';
comment on column procjobs.breaker_list.rate is '... if they are at least this share of all outcomes since the first.';
comment on column procjobs.breaker_list.per is 'How long failures count.';
comment on column procjobs.breaker_list.cool_down is 'How long it stays open the first time.';
comment on column procjobs.breaker_list.longest is 'And at most, however many probes fail.';
comment on column procjobs.breaker_list.opened_by is 'Who opened it by hand; null: failures did.';
comment on column procjobs.breaker_list.set_at is 'When it was last set.';
comment on column procjobs.breaker_list.set_by is 'By whom.';
