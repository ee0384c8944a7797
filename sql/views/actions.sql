-- What people and rescue did to jobs.

create view procjobs.actions as
select
  e.id,
  e.job_id,
  e.at,
  e.type as action,
  e.actor,
  case when (select procjobs.may_see_arguments()) then e.detail else e.detail - 'args_before' - 'args_after' end as detail
from procjobs.job_events e;
comment on view procjobs.actions is 'What was done to jobs from outside: by whom, when and why.';
comment on column procjobs.actions.id is 'Number of the row.';
comment on column procjobs.actions.job_id is 'The job: procjobs.jobs.id.';
comment on column procjobs.actions.at is 'When.';
comment on column procjobs.actions.action is 'cancelled, cancel_requested, retried, redriven, rescued, edited, discarded, overdue (over its timeout: asked to stop), job.stalled (the third crash: a dead letter).';
comment on column procjobs.actions.actor is 'Database user who did it.';
comment on column procjobs.actions.detail is 'The reason, and what there is to say besides; of an edit what was and what is, with arguments only for procjobs_admin.';
