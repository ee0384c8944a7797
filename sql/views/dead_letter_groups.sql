-- Dead letters by their error.

create view procjobs.dead_letter_groups as
select
  g.fingerprint,
  g.task,
  a.error_class,
  case when (select procjobs.may_see_arguments()) then left(a.error_message, 500) end as sample,
  g.jobs,
  g.queues,
  g.first_at,
  g.last_at,
  g.last_id
from (
  select
    j.pj_fingerprint as fingerprint,
    j.task_name::text as task,
    count(*) as jobs,
    array_agg(distinct j.queue_name::text) as queues,
    min(j.pj_finished_at) as first_at,
    max(j.pj_finished_at) as last_at,
    max(j.id) as last_id
  from public.procrastinate_jobs j
  where j.status = 'failed'
  group by j.pj_fingerprint, j.task_name
) g
left join lateral (
  select t.error_class, t.error_message
  from procjobs.job_attempts t
  where t.job_id = g.last_id
    and t.error_class is not null
  order by t.id desc
  limit 1
) a on true;
comment on view procjobs.dead_letter_groups is
  'Dead letters by task and error: errors that differ only in numbers, names and paths are one. select procjobs.redrive(''<fingerprint>'') runs them again.';
comment on column procjobs.dead_letter_groups.fingerprint is 'What redrive and purge_dead_letters take; null: no error is known, or it is from before fingerprints.';
comment on column procjobs.dead_letter_groups.task is 'Their task.';
comment on column procjobs.dead_letter_groups.error_class is 'Class of the exception.';
comment on column procjobs.dead_letter_groups.sample is 'What the newest one''s exception said. Only for procjobs_admin: it may quote arguments.';
comment on column procjobs.dead_letter_groups.jobs is 'How many dead letters.';
comment on column procjobs.dead_letter_groups.queues is 'Their queues.';
comment on column procjobs.dead_letter_groups.first_at is 'When the first of them failed for good.';
comment on column procjobs.dead_letter_groups.last_at is 'When the last did.';
comment on column procjobs.dead_letter_groups.last_id is 'The newest of them: procjobs.jobs.id.';
