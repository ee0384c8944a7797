-- Addresses to which no mail goes, and for which notification that was found out.

create view procjobs.suppressions as
select
  s.address,
  s.since,
  s.reason,
  s.code,
  s.reply,
  s.added_by,
  s.notification_id,
  n.template,
  n.notification_type
from procjobs.suppressed_addresses s
left join procjobs.notification_jobs n on n.id = s.notification_id;
comment on view procjobs.suppressions is 'Addresses to which no mail goes any more, and why.';
comment on column procjobs.suppressions.address is 'The address, in lower case.';
comment on column procjobs.suppressions.since is 'When it was suppressed.';
comment on column procjobs.suppressions.reason is 'bounced, or what somebody said who added it.';
comment on column procjobs.suppressions.code is 'The mail server''s reply code.';
comment on column procjobs.suppressions.reply is 'The mail server''s words.';
comment on column procjobs.suppressions.added_by is 'Database user who did it: of a bounce, the worker''s.';
comment on column procjobs.suppressions.notification_id is 'The notification that bounced.';
comment on column procjobs.suppressions.template is 'The letter that it was; null if it is gone.';
comment on column procjobs.suppressions.notification_type is 'And its type.';
