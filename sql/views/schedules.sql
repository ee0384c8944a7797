-- Schedules as people see them: what there is, what happened, how well it goes; and alerts.

create view procjobs.schedule_list as
select
  s.name,
  s.task,
  coalesce(h.hold, 'active') as state,
  coalesce(s.cron, 'every ' || s.every) as times,
  coalesce(s.timezone, procjobs.cron_timezone()) as timezone,
  case when h.hold is null then s.next_slot end as next_slot,
  case when h.hold is null then s.next_slot at time zone coalesce(s.timezone, procjobs.cron_timezone()) end as next_local,
  l.slot as last_slot,
  l.outcome as last_outcome,
  f.slot as last_run,
  coalesce(f.status, (select j.status from public.procrastinate_jobs j where j.id = f.job_id))::text as last_status,
  f.ended_at - f.started_at as last_took,
  f.rows as last_rows,
  (
    select count(*)::integer
    from procjobs.schedule_ticks t
    where t.schedule = s.name
      and t.slot > procjobs.clock() - interval '7 days'
      and t.missed
  ) as missed,
  s."group",
  s.tenant,
  s.parent,
  s.source,
  s.overlap,
  s.misfire,
  s.jitter,
  s.queue::text as queue,
  s.priority,
  case when (select procjobs.may_see_arguments()) then s.args end as args,
  s.paused_at,
  s.paused_by,
  coalesce(s.pause_reason, case when h.hold = 'off' then (select g.reason from procjobs.schedule_groups g where g.name = s."group") end) as reason,
  case when s.fault is null or (select procjobs.may_see_arguments()) then s.fault else 'procjobs_admin sees what' end as fault,
  s.description,
  s.created_at,
  s.updated_at,
  s.updated_by
from procjobs.schedules s
cross join lateral (select procjobs.schedule_hold(s) as hold) h
left join lateral (
  select t.slot, t.outcome
  from procjobs.schedule_ticks t
  where t.schedule = s.name
  order by t.slot desc
  limit 1
) l on true
left join lateral (
  select t.slot, t.job_id, t.status, t.started_at, t.ended_at, t.rows
  from procjobs.schedule_ticks t
  where t.schedule = s.name
    and t.job_id is not null
  order by t.slot desc
  limit 1
) f on true;
comment on view procjobs.schedule_list is
  'What is enqueued again and again, when next, and how it went last: select name, next_local, last_status, missed from procjobs.schedule_list order by next_slot.';
comment on column procjobs.schedule_list.name is 'Its name; of a tenant''s name/tenant.';
comment on column procjobs.schedule_list.task is 'The task whose jobs it enqueues.';
comment on column procjobs.schedule_list.state is
  'active; paused; off (its group is switched off); undeclared (no living process has it in its code any more; forgotten after seven days); faulty.';
comment on column procjobs.schedule_list.times is 'Its cron, or every so often.';
comment on column procjobs.schedule_list.timezone is 'The time zone of its cron: its own, or the default.';
comment on column procjobs.schedule_list.next_slot is 'When it fires next; null while it is held off.';
comment on column procjobs.schedule_list.next_local is 'The same as the clocks of its zone show it.';
comment on column procjobs.schedule_list.last_slot is 'The last slot in the ledger.';
comment on column procjobs.schedule_list.last_outcome is 'What became of that: fired, skipped or refused.';
comment on column procjobs.schedule_list.last_run is 'The last slot that has a job.';
comment on column procjobs.schedule_list.last_status is 'How that job ended, or todo, doing.';
comment on column procjobs.schedule_list.last_took is 'How long its last run took.';
comment on column procjobs.schedule_list.last_rows is 'The whole number that it returned.';
comment on column procjobs.schedule_list.missed is 'Slots of the last seven days that nobody fired in time.';
comment on column procjobs.schedule_list."group" is 'Switched together: procjobs.set_schedule_group.';
comment on column procjobs.schedule_list.tenant is 'Whose jobs they are.';
comment on column procjobs.schedule_list.parent is 'The schedule whose task and options it follows.';
comment on column procjobs.schedule_list.source is 'sql, code, periodic, file or pack: who made it.';
comment on column procjobs.schedule_list.overlap is 'When the last job has not ended: skip, queue or allow.';
comment on column procjobs.schedule_list.misfire is 'What becomes of slots that nobody fired: skip, latest or all.';
comment on column procjobs.schedule_list.jitter is 'Each job is put off by a part of it.';
comment on column procjobs.schedule_list.queue is 'Queue of its jobs; null: the task''s.';
comment on column procjobs.schedule_list.priority is 'Priority of its jobs; null: the task''s.';
comment on column procjobs.schedule_list.args is 'Arguments of its jobs. Only for procjobs_admin.';
comment on column procjobs.schedule_list.paused_at is 'Since when it is paused.';
comment on column procjobs.schedule_list.paused_by is 'By whom.';
comment on column procjobs.schedule_list.reason is 'Why it is paused or off.';
comment on column procjobs.schedule_list.fault is 'Why it does not fire, or what was wrong with its last slot. In full only for procjobs_admin.';
comment on column procjobs.schedule_list.description is 'What somebody wrote about it.';
comment on column procjobs.schedule_list.created_at is 'When it was made.';
comment on column procjobs.schedule_list.updated_at is 'When it was changed last.';
comment on column procjobs.schedule_list.updated_by is 'By which database user.';

create view procjobs.schedule_history as
select
  t.schedule,
  t.kind,
  t.slot,
  t.outcome,
  case when t.outcome <> 'refused' or (select procjobs.may_see_arguments()) then t.reason end as reason,
  t.missed,
  t.fired_at as at,
  t.fired_by as by,
  t.job_id,
  coalesce(t.status, case when t.ended_at is null then (select j.status from procjobs.jobs j where j.id = t.job_id) end)::text as status,
  t.started_at,
  t.ended_at,
  t.ended_at - t.started_at as took,
  t.attempts,
  t.rows,
  case when (select procjobs.may_see_arguments()) then t.error end as error
from procjobs.schedule_ticks t
union all
select
  r.schedule,
  'manual',
  r.triggered_at,
  'fired',
  null,
  false,
  r.triggered_at,
  r.triggered_by,
  r.job_id,
  coalesce(r.status, case when r.ended_at is null then (select j.status from procjobs.jobs j where j.id = r.job_id) end)::text,
  r.started_at,
  r.ended_at,
  r.ended_at - r.started_at,
  r.attempts,
  r.rows,
  case when (select procjobs.may_see_arguments()) then r.error end
from procjobs.schedule_runs r;
comment on view procjobs.schedule_history is
  'Every slot and every run by hand, and what became of it, for 400 days: select * from procjobs.schedule_history where schedule = ''nightly'' order by slot desc limit 20.';
comment on column procjobs.schedule_history.schedule is 'Its schedule, which may be gone.';
comment on column procjobs.schedule_history.kind is 'slot: a clock fired it. backfill: procjobs.backfill did. manual: procjobs.run_now did.';
comment on column procjobs.schedule_history.slot is 'The slot; of a run by hand when it was asked for.';
comment on column procjobs.schedule_history.outcome is 'fired (there is a job), skipped or refused (see reason).';
comment on column procjobs.schedule_history.reason is 'Why there is no job. Why it was refused: only for procjobs_admin.';
comment on column procjobs.schedule_history.missed is 'Nobody fired it in time.';
comment on column procjobs.schedule_history.at is 'When it was fired, or found to be skipped.';
comment on column procjobs.schedule_history.by is 'By which clock: a worker, a scheduler, pg_cron; or by which user.';
comment on column procjobs.schedule_history.job_id is 'Its job: procjobs.jobs.id, while that is remembered.';
comment on column procjobs.schedule_history.status is 'How the job ended, or todo, doing. Null with an ended_at: it was deleted without a trace.';
comment on column procjobs.schedule_history.started_at is 'When its last run began.';
comment on column procjobs.schedule_history.ended_at is 'When it ended.';
comment on column procjobs.schedule_history.took is 'How long its last run took.';
comment on column procjobs.schedule_history.attempts is 'Runs it had.';
comment on column procjobs.schedule_history.rows is 'The whole number that its task returned.';
comment on column procjobs.schedule_history.error is 'Its last error. Only for procjobs_admin.';

create view procjobs.schedule_stats as
select
  h.schedule,
  count(*) filter (where h.outcome = 'fired') as fired,
  count(*) filter (where h.outcome = 'skipped') as skipped,
  count(*) filter (where h.outcome = 'refused') as refused,
  count(*) filter (where h.missed) as missed,
  count(*) filter (where h.status = 'succeeded') as succeeded,
  count(*) filter (where h.status = 'failed') as failed,
  round(100.0 * count(*) filter (where h.status = 'succeeded')
    / nullif(count(*) filter (where h.status in ('succeeded', 'failed')), 0), 1) as success_percent,
  avg(h.ended_at - h.started_at) filter (where h.status = 'succeeded') as took_avg,
  percentile_cont(0.95) within group (order by h.ended_at - h.started_at) filter (where h.status = 'succeeded') as took_p95,
  max(h.ended_at - h.started_at) filter (where h.status = 'succeeded') as took_max,
  sum(h.rows) as rows
from (
  select t.schedule, t.outcome, t.missed, t.status, t.started_at, t.ended_at, t.rows
  from procjobs.schedule_ticks t
  where t.slot > procjobs.clock() - interval '30 days'
  union all
  select r.schedule, 'fired', false, r.status, r.started_at, r.ended_at, r.rows
  from procjobs.schedule_runs r
  where r.triggered_at > procjobs.clock() - interval '30 days'
) h
group by h.schedule;
comment on view procjobs.schedule_stats is 'How well schedules went in the last 30 days, runs by hand included.';
comment on column procjobs.schedule_stats.schedule is 'Its name.';
comment on column procjobs.schedule_stats.fired is 'Slots and runs that got a job.';
comment on column procjobs.schedule_stats.skipped is 'Slots that did not, for a reason: misfire, overlap.';
comment on column procjobs.schedule_stats.refused is 'Slots whose job could not be enqueued.';
comment on column procjobs.schedule_stats.missed is 'Slots that nobody fired in time.';
comment on column procjobs.schedule_stats.succeeded is 'Jobs that succeeded.';
comment on column procjobs.schedule_stats.failed is 'Jobs that failed for good.';
comment on column procjobs.schedule_stats.success_percent is 'Of those two the part that succeeded.';
comment on column procjobs.schedule_stats.took_avg is 'How long a successful run took on average.';
comment on column procjobs.schedule_stats.took_p95 is 'How long all but one in twenty took at most.';
comment on column procjobs.schedule_stats.took_max is 'How long the longest took.';
comment on column procjobs.schedule_stats.rows is 'The sum of the whole numbers that the runs returned.';

create view procjobs.schedule_group_list as
select
  g.name,
  g.enabled,
  (select count(*)::integer from procjobs.schedules s where s."group" = g.name) as schedules,
  g.set_at,
  g.set_by,
  g.reason
from procjobs.schedule_groups g;
comment on view procjobs.schedule_group_list is 'Groups of schedules and whether they are switched on.';
comment on column procjobs.schedule_group_list.name is 'Its name.';
comment on column procjobs.schedule_group_list.enabled is 'False: none of its schedules fires.';
comment on column procjobs.schedule_group_list.schedules is 'How many schedules are in it.';
comment on column procjobs.schedule_group_list.set_at is 'When it was switched last.';
comment on column procjobs.schedule_group_list.set_by is 'By whom.';
comment on column procjobs.schedule_group_list.reason is 'Why.';
