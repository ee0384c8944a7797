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
  case when l.rate is not null then coalesce(lasting.n, recent.n) end as started,
  greatest(
    case when recent.n >= l.rate then recent.first + l.per end,
    case when lasting.n >= l.rate then coalesce(lasting.first, procjobs.clock()) + l.per end
  ) as resets_at,
  (
    select count(*)::integer
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'limit'
      and j.pj_held_by = s.key
  ) as waiting,
  l.on_excess,
  l.set_at,
  l.set_by,
  case when l.rate is not null then coalesce(l.rate_counts, 'starts') end as rate_counts
from procjobs.limits l
left join procjobs.limit_state s on s.limit_name = l.name
left join lateral (
  select coalesce(sum(c.n), 0)::integer as n, min(c.at) as first
  from unnest(s.starts, s.counts) as c(at, n)
  where c.at > procjobs.clock() - l.per
    and c.at <= procjobs.clock() + l.per
) recent on true
left join lateral (
  select
    (select count(*) from procjobs.limit_grants g where g.key = s.key)::integer + count(*)::integer as n,
    min(e.at) as first
  from procjobs.limit_ends e
  where e.key = s.key
    and e.at > procjobs.clock() - l.per
    and e.at <= procjobs.clock() + l.per
) lasting on l.rate_counts = 'runs'
where l.breaker is null;
comment on view procjobs.limit_use is
  'Limits, one row for each key in use: select * from procjobs.limit_use order by waiting desc nulls last.';
comment on column procjobs.limit_use.name is 'Name given to set_limit.';
comment on column procjobs.limit_use.task is 'Task it is for; null is any.';
comment on column procjobs.limit_use.queue is 'Queue it is for; null is any.';
comment on column procjobs.limit_use.key is 'What has this count: the name and, for limits by key, the value; a value of arguments only for procjobs_admin. Null: nothing counted yet.';
comment on column procjobs.limit_use.max_running is 'Jobs that may run at once.';
comment on column procjobs.limit_use.running is 'Jobs that do.';
comment on column procjobs.limit_use.rate is 'Jobs that may start within any span of per; where rate_counts is runs, that may run or end within it.';
comment on column procjobs.limit_use.per is 'The period of the rate.';
comment on column procjobs.limit_use.started is 'Jobs that count for it now: those that started within the last such span, or those that run or ended within it.';
comment on column procjobs.limit_use.resets_at is 'When an exhausted rate lets the next job go, at the earliest.';
comment on column procjobs.limit_use.waiting is 'Jobs that wait for it.';
comment on column procjobs.limit_use.on_excess is 'What becomes of excess: wait, drop, cancel_oldest.';
comment on column procjobs.limit_use.set_at is 'When it was last set.';
comment on column procjobs.limit_use.set_by is 'By whom.';
comment on column procjobs.limit_use.rate_counts is 'What the rate counts: starts, or runs, each until per after its end.';
