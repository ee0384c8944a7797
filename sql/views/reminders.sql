-- Reminders: what was due, and what came of it.

create view procjobs.reminders as
with both_kinds as (
  select
    'payment'::text as kind, r.id, r.project_id as about_id, r.contact_id as person_id, r.step, r.local_day, r.timezone,
    r.amount, r.currency, null::timestamptz as starts_at, r.created_at, r.outcome, r.reason, r.notification_id
  from procjobs.payment_reminders r
  union all
  select
    'event', r.id, r.event_id, r.person_id, r.step, r.local_day, r.timezone,
    null, null, r.starts_at, r.created_at, r.outcome, r.reason, r.notification_id
  from procjobs.event_reminders r
)
select
  b.kind,
  b.id,
  b.about_id,
  b.person_id,
  b.step,
  b.local_day,
  b.timezone,
  b.amount,
  b.currency,
  b.starts_at,
  b.created_at,
  b.outcome,
  b.reason,
  b.notification_id,
  n.status as mail_status,
  n.processed_at as mail_processed_at,
  n.last_error as mail_error
from both_kinds b
left join procjobs.notification_jobs n on n.id = b.notification_id;
comment on view procjobs.reminders is 'Each reminder that was due, of payments and events, why nothing was sent, and what became of its mail.';
comment on column procjobs.reminders.kind is 'payment or event.';
comment on column procjobs.reminders.id is 'Number of the row among those of its kind.';
comment on column procjobs.reminders.about_id is 'Of a payment: host_projects.id. Of an event: host_events.id.';
comment on column procjobs.reminders.person_id is 'Who was reminded: host_people.id; null: the project had no contact.';
comment on column procjobs.reminders.step is 'By which step: reminder_steps.name.';
comment on column procjobs.reminders.local_day is 'The day of the reminder, in timezone.';
comment on column procjobs.reminders.timezone is 'The person''s; where that is not known the organization''s, else UTC.';
comment on column procjobs.reminders.amount is 'Of a payment: what was left to pay.';
comment on column procjobs.reminders.currency is 'Of a payment: in this currency.';
comment on column procjobs.reminders.starts_at is 'Of an event: when it was to begin.';
comment on column procjobs.reminders.created_at is 'When it was found due.';
comment on column procjobs.reminders.outcome is 'created (a mail was requested) or unreachable.';
comment on column procjobs.reminders.reason is 'Why nothing was sent, in words; null when a mail was requested.';
comment on column procjobs.reminders.notification_id is 'The mail: notification_jobs.id.';
comment on column procjobs.reminders.mail_status is
  'Of the mail: pending, processing, sent, failed, or cancelled, as when it was paid or the event was moved before it was sent.';
comment on column procjobs.reminders.mail_processed_at is 'When the mail ended.';
comment on column procjobs.reminders.mail_error is 'Why the mail failed or was not sent.';
