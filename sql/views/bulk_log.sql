-- Actions on many jobs at once.

create view procjobs.bulk_log as
select
  b.id,
  b.action,
  b.filter,
  b.reason,
  b.actor,
  b.started_at,
  b.ended_at,
  b.jobs
from procjobs.bulk_actions b;
comment on view procjobs.bulk_log is 'Who cancelled, retried or discarded many jobs at once, one row a batch.';
comment on column procjobs.bulk_log.id is 'Number of the row.';
comment on column procjobs.bulk_log.action is 'cancel, retry or discard.';
comment on column procjobs.bulk_log.filter is 'What chose the jobs.';
comment on column procjobs.bulk_log.reason is 'Why.';
comment on column procjobs.bulk_log.actor is 'Database user who did it.';
comment on column procjobs.bulk_log.started_at is 'When the batch began.';
comment on column procjobs.bulk_log.ended_at is 'When it was done.';
comment on column procjobs.bulk_log.jobs is 'To how many jobs it was done.';
