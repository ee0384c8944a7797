-- Who is told of alerts. Applied by 0024_alert_mail.py.

create table procjobs.alert_recipients (
  id bigint generated always as identity primary key,
  delivery_method text not null,
  address text not null,
  name text,
  kinds text[],
  pause interval not null default interval '5 minutes',
  created_at timestamptz not null,
  set_at timestamptz not null,
  set_by text not null,
  told_at timestamptz,
  constraint method_known check (delivery_method in ('email', 'slack', 'webhook')),
  constraint kinds_named check (kinds <> '{}' and array_position(kinds, null) is null),
  constraint pause_not_negative check (pause >= interval '0')
);
create unique index alert_recipients_address on procjobs.alert_recipients (
  delivery_method, (case when delivery_method = 'email' then lower(address) else address end)
);
comment on table procjobs.alert_recipients is
  'Who is told of alerts: operators, at bare addresses. Set with procjobs.set_alert_recipient. Read procjobs.alert_recipient_list instead.';
comment on column procjobs.alert_recipients.id is 'Number of the row.';
comment on column procjobs.alert_recipients.delivery_method is 'email, slack or webhook.';
comment on column procjobs.alert_recipients.address is 'Where that method reaches them: an e-mail address, a Slack channel or member, a URL.';
comment on column procjobs.alert_recipients.name is 'How to address whoever reads there.';
comment on column procjobs.alert_recipients.kinds is 'Only alerts of these kinds; null: all.';
comment on column procjobs.alert_recipients.pause is 'At most one message in so long: what comes up meanwhile is in the next one.';
comment on column procjobs.alert_recipients.created_at is 'Since when. What was over by then is not told.';
comment on column procjobs.alert_recipients.set_at is 'When it was last set.';
comment on column procjobs.alert_recipients.set_by is 'By whom.';
comment on column procjobs.alert_recipients.told_at is 'When the last message was requested; null: never.';

create table procjobs.alert_letters (
  alert_id bigint not null references procjobs.alerts (id) on delete cascade,
  recipient_id bigint not null references procjobs.alert_recipients (id) on delete cascade,
  event text not null,
  notification_id uuid not null,
  at timestamptz not null,
  primary key (alert_id, recipient_id, event),
  constraint event_known check (event in ('opened', 'closed'))
);
create index alert_letters_recipient on procjobs.alert_letters (recipient_id, at desc);
comment on table procjobs.alert_letters is
  'Who was told of which alert: that it opened, once, and that it is over, once. An alert that opens anew is another row of alerts.';
comment on column procjobs.alert_letters.alert_id is 'The alert: alerts.id. Forgotten with it.';
comment on column procjobs.alert_letters.recipient_id is 'Who was told: alert_recipients.id.';
comment on column procjobs.alert_letters.event is 'opened or closed.';
comment on column procjobs.alert_letters.notification_id is 'The message, which may tell of several: notification_jobs.id.';
comment on column procjobs.alert_letters.at is 'When it was requested.';
