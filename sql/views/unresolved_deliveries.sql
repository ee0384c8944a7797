-- Notifications that may have arrived, and nobody knows.

create view procjobs.unresolved_deliveries as
select
  n.id as notification_id,
  n.job_id,
  n.delivery_method,
  n.notification_type,
  procjobs.after_unknown(n.delivery_method) as policy,
  l.attempt,
  l.started_at,
  l.address,
  l.provider,
  l.message_id,
  l.error
from (
  -- Of all that failed few are in doubt: an index has those alone.
  select distinct on (u.job_id) u.*
  from procjobs.notification_delivery_logs u
  where u.status = 'unknown'
    and u.resolved_at is null
  order by u.job_id, u.attempt desc
) l
join procjobs.notification_jobs n on n.id = l.job_id
where n.status = 'failed';
comment on view procjobs.unresolved_deliveries is
  'Notifications that ended in doubt: select procjobs.resolve_delivery(notification_id, ''sent'') or ''lost''.';
comment on column procjobs.unresolved_deliveries.notification_id is 'For procjobs.resolve_delivery.';
comment on column procjobs.unresolved_deliveries.job_id is 'Its queue job.';
comment on column procjobs.unresolved_deliveries.delivery_method is 'How it was sent.';
comment on column procjobs.unresolved_deliveries.notification_type is 'What it is about.';
comment on column procjobs.unresolved_deliveries.policy is 'hold: it waits for a decision; retry: all its tries were spent.';
comment on column procjobs.unresolved_deliveries.attempt is 'The last try in doubt.';
comment on column procjobs.unresolved_deliveries.started_at is 'When that began.';
comment on column procjobs.unresolved_deliveries.address is 'Where it went.';
comment on column procjobs.unresolved_deliveries.provider is 'Through whom, if the worker could say so.';
comment on column procjobs.unresolved_deliveries.message_id is 'Under which id the other side may know it.';
comment on column procjobs.unresolved_deliveries.error is 'What is known.';
