-- What people set, change by change. Whoever may not see arguments does not see those of schedules here, nor whose address is told of alerts.

create view procjobs.setting_log as
select
  c.id,
  c.at,
  c.kind,
  c.name,
  c.change,
  c.actor,
  c.reason,
  case when (select procjobs.may_see_arguments()) then c.before else c.before - '{args,own_args}'::text[] end as before,
  case when (select procjobs.may_see_arguments()) then c.after else c.after - '{args,own_args}'::text[] end as after
from procjobs.setting_changes c
where c.kind <> 'alert_recipient'
   or (select procjobs.may_see_arguments());
comment on view procjobs.setting_log is
  'Every change of what people set, pauses too: select * from procjobs.setting_log where name = ''mail'' order by id desc. Kept for a year.';
comment on column procjobs.setting_log.id is 'Number of the row.';
comment on column procjobs.setting_log.at is 'When.';
comment on column procjobs.setting_log.kind is
  'queue, task, limit, breaker, schedule, schedule_group, sql_task, retention, table_policy, retry_rule, delivery_policy, reminder_step, alert_recipient '
  '(only for procjobs_admin), or general: schedule_settings.';
comment on column procjobs.setting_log.name is 'Which one.';
comment on column procjobs.setting_log.change is 'paused, resumed, set (made, changed, reset) or dropped.';
comment on column procjobs.setting_log.actor is 'Database user who did it, by a function or by hand.';
comment on column procjobs.setting_log.reason is 'Why: the function''s reason, or the setting procjobs.reason of whoever did it.';
comment on column procjobs.setting_log.before is 'What is different, as it was; null: it was made. Arguments of schedules only for procjobs_admin.';
comment on column procjobs.setting_log.after is 'What is different, as it is since; null: it was dropped. Arguments of schedules only for procjobs_admin.';
