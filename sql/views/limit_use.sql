-- Limits, and what is used of them.

create view procjobs.limit_use as
select
  l.name,
  l.task,
  l.queue,
  case when l.key is null or l.key not like 'args.%' or (select procjobs.may_see_arguments()) then s.key else l.name end as key,
  l.max_running,
  case when l.max_running is not null then (
    select count(*)::integer from procjobs.limit_grants g where g.key = s.key
  ) end as running,
  l.rate,
  l.per,
  case when l.rate is not null then recent.n end as started,
  case when recent.n >= l.rate then recent.first + l.per end as resets_at,
  (
    select count(*)::integer
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_held_by = s.key
  ) as waiting,
  l.on_excess,
  l.set_at,
  l.set_by
from procjobs.limits l
left join procjobs.limit_state s on s.limit_name = l.name
left join lateral (
  select coalesce(sum(c.n), 0)::integer as n, min(c.at) as first
  from unnest(s.starts, s.counts) as c(at, n)
  where c.at > procjobs.clock() - l.per
) recent on true
where l.breaker is null;
comment on view procjobs.limit_use is
  'Limits, one row for each key in use: select * from procjobs.limit_use order by waiting desc nulls last.';
comment on column procjobs.limit_use.name is 'Name given to set_limit.';
comment on column procjobs.limit_use.task is 'Task it is for; null is any.';
comment on column procjobs.limit_use.queue is 'Queue it is for; null is any.';
comment on column procjobs.limit_use.key is 'What has this count: the name and, for limits by key, the value; a value of arguments only for procjobs_admin. Null: nothing counted yet.';
comment on column procjobs.limit_use.max_running is 'Jobs that may run at once.';
comment on column procjobs.limit_use.running is 'Jobs that do.';
comment on column procjobs.limit_use.rate is 'Jobs that may start within any span of per.';
comment on column procjobs.limit_use.per is 'The period of the rate.';
comment on column procjobs.limit_use.started is 'Jobs that started within the last such span.';
comment on column procjobs.limit_use.resets_at is 'When an exhausted rate lets the next job go.';
comment on column procjobs.limit_use.waiting is 'Jobs that wait for it.';
comment on column procjobs.limit_use.on_excess is 'What becomes of excess: wait, drop, cancel_oldest.';
comment on column procjobs.limit_use.set_at is 'When it was last set.';
comment on column procjobs.limit_use.set_by is 'By whom.';
