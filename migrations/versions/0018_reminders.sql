-- Reminders of payments and events. Applied by 0018_reminders.py.

create table procjobs.reminder_steps (
  kind text not null,
  name text not null,
  after interval,
  before interval,
  every interval,
  urgency text not null default 'normal',
  heading text,
  words text,
  enabled boolean not null default true,
  set_at timestamptz not null,
  set_by text not null,
  primary key (kind, name),
  constraint kind_known check (kind in ('payment', 'event')),
  constraint name_is_a_word check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  constraint urgency_known check (urgency in ('urgent', 'normal', 'low')),
  constraint after_a_payment check ((kind = 'payment') = (after is not null)),
  constraint before_an_event check (kind = 'event' or before is null),
  constraint repeated_for_payments check (every is null or kind = 'payment')
);
comment on table procjobs.reminder_steps is
  'Of what, when and how people are reminded. Set with procjobs.set_reminder_step; of the steps that have come, only the latest is sent.';
comment on column procjobs.reminder_steps.kind is 'payment: of a balance that is unpaid; event: of an event that comes.';
comment on column procjobs.reminder_steps.name is 'Its name, a lowercase word.';
comment on column procjobs.reminder_steps.after is 'Of a payment: so long after the advance was paid.';
comment on column procjobs.reminder_steps.before is
  'Of an event: so long before it begins. Null: as the attendee chose (host_event_attendees.remind_before).';
comment on column procjobs.reminder_steps.every is 'Of a payment: again and again after so long; null: once.';
comment on column procjobs.reminder_steps.urgency is 'Of its mails: urgent, normal or low.';
comment on column procjobs.reminder_steps.heading is 'What its mails begin with, in the subject too; null: Reminder.';
comment on column procjobs.reminder_steps.words is 'What its mails say besides, plain text; null: nothing.';
comment on column procjobs.reminder_steps.enabled is 'Whether it is sent. One that is off is as if it were not there.';
comment on column procjobs.reminder_steps.set_at is 'When it was set.';
comment on column procjobs.reminder_steps.set_by is 'Who set it.';

insert into procjobs.reminder_steps (kind, name, after, every, heading, set_at, set_by)
values
  ('payment', 'first', interval '3 days', null, null, now(), 'procjobs'),
  ('payment', 'second', interval '7 days', null, 'Second reminder', now(), 'procjobs'),
  ('payment', 'third', interval '14 days', null, 'Third reminder', now(), 'procjobs'),
  ('payment', 'weekly', interval '21 days', interval '7 days', 'Still open', now(), 'procjobs'),
  ('event', 'chosen', null, null, null, now(), 'procjobs');

create table procjobs.payment_reminders (
  id bigint generated always as identity primary key,
  project_id uuid not null,
  step text not null,
  occurrence integer not null,
  local_day date not null,
  timezone text not null,
  advance_paid_at timestamptz not null,
  contact_id uuid,
  amount numeric not null,
  currency text,
  created_at timestamptz not null,
  outcome text not null,
  reason text,
  notification_id uuid,
  constraint outcome_known check (outcome in ('created', 'unreachable')),
  constraint unreachable_says_why check ((outcome = 'unreachable') = (reason is not null))
);
create unique index payment_reminders_day on procjobs.payment_reminders (project_id, local_day, outcome);
create unique index payment_reminders_step on procjobs.payment_reminders (project_id, advance_paid_at, step, occurrence)
  where outcome = 'created';
create index payment_reminders_created on procjobs.payment_reminders (created_at);
create index payment_reminders_person on procjobs.payment_reminders (contact_id) where contact_id is not null;
create index payment_reminders_notification on procjobs.payment_reminders (notification_id) where notification_id is not null;
comment on table procjobs.payment_reminders is
  'Each reminder of a balance that was due: of a project at most one a local day, and each step once for an advance. '
    'Written by procjobs.create_payment_reminders. Read procjobs.reminders instead.';
comment on column procjobs.payment_reminders.id is 'Number of the row.';
comment on column procjobs.payment_reminders.project_id is 'Of which project: host_projects.id.';
comment on column procjobs.payment_reminders.step is 'By which step: reminder_steps.name.';
comment on column procjobs.payment_reminders.occurrence is 'The how manieth time of a step that comes again: 0, 1, ...';
comment on column procjobs.payment_reminders.local_day is 'The day of the reminder, in timezone.';
comment on column procjobs.payment_reminders.timezone is 'The contact''s; where that is not known the organization''s, else UTC.';
comment on column procjobs.payment_reminders.advance_paid_at is 'When the advance was paid, from which steps count.';
comment on column procjobs.payment_reminders.contact_id is 'Who was reminded: host_people.id; null: the project had no contact.';
comment on column procjobs.payment_reminders.amount is 'What was left to pay.';
comment on column procjobs.payment_reminders.currency is 'In this currency.';
comment on column procjobs.payment_reminders.created_at is 'When it was found due.';
comment on column procjobs.payment_reminders.outcome is 'created (a mail was requested) or unreachable. Of the same day there may be both.';
comment on column procjobs.payment_reminders.reason is 'Why nothing was sent, in words; null when a mail was requested.';
comment on column procjobs.payment_reminders.notification_id is 'The mail: notification_jobs.id.';

create table procjobs.event_reminders (
  id bigint generated always as identity primary key,
  event_id uuid not null,
  person_id uuid not null,
  step text not null,
  starts_at timestamptz not null,
  local_day date not null,
  timezone text not null,
  created_at timestamptz not null,
  outcome text not null,
  reason text,
  notification_id uuid,
  constraint outcome_known check (outcome in ('created', 'unreachable')),
  constraint unreachable_says_why check ((outcome = 'unreachable') = (reason is not null))
);
create unique index event_reminders_step on procjobs.event_reminders (event_id, person_id, starts_at, step, outcome);
create index event_reminders_person on procjobs.event_reminders (person_id, id desc);
create index event_reminders_created on procjobs.event_reminders (created_at);
create index event_reminders_starts on procjobs.event_reminders (starts_at);
create index event_reminders_notification on procjobs.event_reminders (notification_id) where notification_id is not null;
comment on table procjobs.event_reminders is
  'Each reminder of an event that was due: one for each person, step and start, so that a moved event is reminded of anew. '
    'Written by procjobs.create_event_reminders. Read procjobs.reminders instead.';
comment on column procjobs.event_reminders.id is 'Number of the row.';
comment on column procjobs.event_reminders.event_id is 'Of which event: host_events.id.';
comment on column procjobs.event_reminders.person_id is 'Who was reminded: host_people.id.';
comment on column procjobs.event_reminders.step is 'By which step: reminder_steps.name.';
comment on column procjobs.event_reminders.starts_at is 'When the event was to begin.';
comment on column procjobs.event_reminders.local_day is 'The day of the reminder, in timezone.';
comment on column procjobs.event_reminders.timezone is 'The person''s; where that is not known the organization''s, else UTC.';
comment on column procjobs.event_reminders.created_at is 'When it was found due.';
comment on column procjobs.event_reminders.outcome is 'created (a mail was requested) or unreachable. Of the same step there may be both.';
comment on column procjobs.event_reminders.reason is 'Why nothing was sent, in words; null when a mail was requested.';
comment on column procjobs.event_reminders.notification_id is 'The mail: notification_jobs.id.';
