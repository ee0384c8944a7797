-- Who is told of alerts, and how the last message fared.

create view procjobs.alert_recipient_list as
select
  r.delivery_method,
  r.address,
  r.name,
  r.kinds,
  r.pause,
  r.set_at,
  r.set_by,
  r.told_at,
  l.alerts,
  n.status as last_status,
  n.last_error
from procjobs.alert_recipients r
left join lateral (
  select t.notification_id, count(*) as alerts
  from procjobs.alert_letters t
  where t.recipient_id = r.id
    and t.at = (select max(m.at) from procjobs.alert_letters m where m.recipient_id = r.id)
  group by t.notification_id
  limit 1
) l on true
left join procjobs.notification_jobs n on n.id = l.notification_id;
comment on view procjobs.alert_recipient_list is
  'Who is told of alerts, by which method, and what became of the last message. Set with procjobs.set_alert_recipient.';
comment on column procjobs.alert_recipient_list.delivery_method is 'email, slack or webhook.';
comment on column procjobs.alert_recipient_list.address is 'Where that method reaches them.';
comment on column procjobs.alert_recipient_list.name is 'How to address whoever reads there.';
comment on column procjobs.alert_recipient_list.kinds is 'Only alerts of these kinds; null: all.';
comment on column procjobs.alert_recipient_list.pause is 'At most one message in so long.';
comment on column procjobs.alert_recipient_list.set_at is 'When it was last set.';
comment on column procjobs.alert_recipient_list.set_by is 'By whom.';
comment on column procjobs.alert_recipient_list.told_at is 'When the last message was requested; null: never.';
comment on column procjobs.alert_recipient_list.alerts is 'Of how many openings and ends it tells.';
comment on column procjobs.alert_recipient_list.last_status is 'What became of it: pending, processing, sent, failed, cancelled.';
comment on column procjobs.alert_recipient_list.last_error is 'Why it did not get through.';
