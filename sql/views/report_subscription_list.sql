-- Who asked for the daily report, and how the last one fared.

create view procjobs.report_subscription_list as
select
  s.person_id,
  s.address,
  s.address_name,
  s.timezone,
  s.delivery_time,
  s.set_at,
  s.set_by,
  exists (
    select from procjobs.unsubscriptions u where u.addressee = s.addressee and u.kind = 'daily_report'
  ) as unsubscribed,
  r.local_day as last_day,
  coalesce(n.status, r.outcome) as last_status,
  coalesce(n.last_error, r.reason) as last_error
from procjobs.report_subscriptions s
left join lateral (
  select d.* from procjobs.daily_reports d where d.addressee = s.addressee order by d.local_day desc limit 1
) r on true
left join procjobs.notification_jobs n on n.id = r.notification_id;
comment on view procjobs.report_subscription_list is
  'Who asked for the daily report, and what became of the last one. Set with procjobs.subscribe_report.';
comment on column procjobs.report_subscription_list.person_id is 'Who gets it: host_people.id.';
comment on column procjobs.report_subscription_list.address is 'Where it goes, when it is not to a person.';
comment on column procjobs.report_subscription_list.address_name is 'How to address whoever reads mail there.';
comment on column procjobs.report_subscription_list.timezone is 'Where days begin; null: where the person lives, else UTC.';
comment on column procjobs.report_subscription_list.delivery_time is 'Not before this local time.';
comment on column procjobs.report_subscription_list.set_at is 'When it was last set.';
comment on column procjobs.report_subscription_list.set_by is 'By whom.';
comment on column procjobs.report_subscription_list.unsubscribed is 'Whether the link in a mail ended it; subscribe_report takes that back.';
comment on column procjobs.report_subscription_list.last_day is 'The day that the last report tells of.';
comment on column procjobs.report_subscription_list.last_status is 'What became of it: pending, processing, sent, failed, cancelled; or unreachable.';
comment on column procjobs.report_subscription_list.last_error is 'Why it did not get through.';
