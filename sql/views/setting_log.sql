-- What was set for queues, tasks and limits, change by change.

create view procjobs.setting_log as
select
  c.id,
  c.at,
  c.kind,
  c.name,
  c.change,
  c.actor,
  c.reason,
  c.before,
  c.after
from procjobs.setting_changes c;
comment on view procjobs.setting_log is
  'Every change of a queue, task or limit, pauses too: select * from procjobs.setting_log where name = ''mail'' order by id desc. Kept for a year.';
comment on column procjobs.setting_log.id is 'Number of the row.';
comment on column procjobs.setting_log.at is 'When.';
comment on column procjobs.setting_log.kind is 'queue, task or limit.';
comment on column procjobs.setting_log.name is 'Which one.';
comment on column procjobs.setting_log.change is 'paused, resumed, set (made, changed, reset) or dropped.';
comment on column procjobs.setting_log.actor is 'Database user who did it, by a function or by hand.';
comment on column procjobs.setting_log.reason is 'Why: the function''s reason, or the setting procjobs.reason of whoever did it.';
comment on column procjobs.setting_log.before is 'What is different, as it was; null: it was made.';
comment on column procjobs.setting_log.after is 'What is different, as it is since; null: it was dropped.';
