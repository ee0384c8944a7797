-- Digests and batched notice mails. Applied by 0016_digests.py.

create table procjobs.digest_schedules (
  id uuid primary key default gen_random_uuid(),
  recipient_id uuid not null,
  group_id uuid,
  frequency text not null,
  delivery_time time(0) not null,
  timezone text,
  day_of_week integer,
  day_of_month integer,
  max_updates_per_digest integer not null,
  include_content_types text[],
  delivery_method text not null,
  is_active boolean not null,
  last_digest_at timestamptz,
  told_until timestamptz not null,
  next_digest_scheduled timestamptz not null,
  created_by text not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint frequency_known check (frequency in ('daily', 'weekly', 'monthly')),
  constraint time_of_a_day check (delivery_time < '24:00'),
  constraint day_of_a_week check (day_of_week between 1 and 7),
  constraint day_of_a_month check (day_of_month between 1 and 31),
  constraint some_updates check (max_updates_per_digest between 1 and 100),
  constraint some_types check (cardinality(include_content_types) > 0)
);
create unique index digest_schedules_group on procjobs.digest_schedules (recipient_id, group_id, frequency)
  where group_id is not null;
create unique index digest_schedules_all on procjobs.digest_schedules (recipient_id, frequency) where group_id is null;
create index digest_schedules_due on procjobs.digest_schedules (next_digest_scheduled) where is_active;
comment on table procjobs.digest_schedules is
  'Who gets a digest of what, and when: one row for each recipient, group and frequency. Made by '
    'procjobs.create_digest_schedule, worked by procjobs.create_digest_jobs.';
comment on column procjobs.digest_schedules.id is 'What create_digest_schedule returned.';
comment on column procjobs.digest_schedules.recipient_id is 'Who gets it: host_recipients.id.';
comment on column procjobs.digest_schedules.group_id is 'Of which group: host_groups.id. Null: of all groups whose updates the recipient receives.';
comment on column procjobs.digest_schedules.frequency is 'daily, weekly or monthly.';
comment on column procjobs.digest_schedules.delivery_time is 'At which local time.';
comment on column procjobs.digest_schedules.timezone is 'Local where: an IANA zone. Null: the recipient''s own (host_recipients.timezone).';
comment on column procjobs.digest_schedules.day_of_week is 'Of a weekly digest: 1 Monday to 7 Sunday. Null: Monday.';
comment on column procjobs.digest_schedules.day_of_month is
  'Of a monthly digest: 1 to 31; in a month that has no such day its last one. Null: the first.';
comment on column procjobs.digest_schedules.max_updates_per_digest is 'Shown at most, the newest; how many more there are is said.';
comment on column procjobs.digest_schedules.include_content_types is 'Only updates of these kinds (host_updates.content_type). Null: of all.';
comment on column procjobs.digest_schedules.delivery_method is 'How: email.';
comment on column procjobs.digest_schedules.is_active is 'Whether it is worked at all.';
comment on column procjobs.digest_schedules.last_digest_at is
  'When the last digest was created. One that found nothing does not count.';
comment on column procjobs.digest_schedules.told_until is
  'The next digest tells of what was shared since. Moved by a digest and by one that found all read, not while muted or unreachable.';
comment on column procjobs.digest_schedules.next_digest_scheduled is 'When the next one is due.';
comment on column procjobs.digest_schedules.created_by is 'Database user who made it.';
comment on column procjobs.digest_schedules.created_at is 'When it was made.';
comment on column procjobs.digest_schedules.updated_at is 'When somebody last changed what it says.';

create table procjobs.digest_runs (
  id bigint generated always as identity primary key,
  schedule_id uuid not null,
  recipient_id uuid not null,
  group_id uuid,
  frequency text not null,
  slot timestamptz not null,
  ran_at timestamptz not null,
  outcome text not null,
  reason text,
  updates integer not null,
  left_out integer not null,
  notification_id uuid,
  constraint outcome_known check (outcome in ('created', 'empty', 'muted', 'unreachable', 'gone')),
  constraint created_makes_a_mail check ((outcome = 'created') = (notification_id is not null))
);
create index digest_runs_recipient on procjobs.digest_runs (recipient_id, id desc);
create index digest_runs_schedule on procjobs.digest_runs (schedule_id, id desc);
comment on table procjobs.digest_runs is
  'What came of each digest that was due, those too that found nothing. Kept for 90 days, also when the schedule is gone.';
comment on column procjobs.digest_runs.id is 'Number of the row.';
comment on column procjobs.digest_runs.schedule_id is 'Of which schedule: digest_schedules.id.';
comment on column procjobs.digest_runs.recipient_id is 'Whose.';
comment on column procjobs.digest_runs.group_id is 'Of which group; null: of all.';
comment on column procjobs.digest_runs.frequency is 'daily, weekly or monthly, as it was then.';
comment on column procjobs.digest_runs.slot is 'When it was due.';
comment on column procjobs.digest_runs.ran_at is 'When it was looked at. Later than the slot where nobody was there to do it.';
comment on column procjobs.digest_runs.outcome is
  'created, empty (nothing unread), muted, unreachable (no address), gone (no such recipient, or none of the group any more).';
comment on column procjobs.digest_runs.reason is 'Why there was none, in words. Null when it was created.';
comment on column procjobs.digest_runs.updates is 'Unread updates in all.';
comment on column procjobs.digest_runs.left_out is 'How many of them over max_updates_per_digest.';
comment on column procjobs.digest_runs.notification_id is 'The mail: notification_jobs.id.';

create table procjobs.notification_email_queue (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null,
  notification_ids uuid[] not null,
  scheduled_for timestamptz not null,
  status text not null default 'pending',
  attempts integer not null default 0,
  error text,
  notification_id uuid,
  created_by text not null,
  created_at timestamptz not null,
  claimed_at timestamptz,
  processed_at timestamptz,
  constraint status_known check (status in ('pending', 'processing', 'sent', 'failed', 'skipped')),
  constraint some_notices check (cardinality(notification_ids) > 0),
  constraint processed_when_over check ((processed_at is null) = (status in ('pending', 'processing')))
);
create index notification_email_queue_due on procjobs.notification_email_queue (scheduled_for) where status = 'pending';
create index notification_email_queue_person on procjobs.notification_email_queue (person_id, scheduled_for) where status = 'pending';
create index notification_email_queue_mail on procjobs.notification_email_queue (notification_id) where notification_id is not null;
create index notification_email_queue_claimed on procjobs.notification_email_queue (claimed_at) where claimed_at is not null;
create index notification_email_queue_open on procjobs.notification_email_queue (id) where status = 'processing';
create index notification_email_queue_over on procjobs.notification_email_queue (processed_at) where processed_at is not null;
comment on table procjobs.notification_email_queue is
  'Notices of the application''s inbox that are to be mailed. Made by procjobs.queue_notification_email, worked by '
    'procjobs.process_email_queue. What ended is kept for 90 days.';
comment on column procjobs.notification_email_queue.id is 'What queue_notification_email returned.';
comment on column procjobs.notification_email_queue.person_id is 'Whose notices: host_people.id.';
comment on column procjobs.notification_email_queue.notification_ids is 'Which: host_inbox.id.';
comment on column procjobs.notification_email_queue.scheduled_for is 'Not mailed before.';
comment on column procjobs.notification_email_queue.status is
  'pending, processing (in a mail that is under way), sent, failed (for good), skipped (all was read meanwhile, or the mail was cancelled).';
comment on column procjobs.notification_email_queue.attempts is 'Tries to send its mail.';
comment on column procjobs.notification_email_queue.error is 'Why it failed or was skipped, or why the last try did not get through.';
comment on column procjobs.notification_email_queue.notification_id is 'Its mail: notification_jobs.id. Several rows of one person are one mail.';
comment on column procjobs.notification_email_queue.created_by is 'Database user who queued it.';
comment on column procjobs.notification_email_queue.created_at is 'When it was queued.';
comment on column procjobs.notification_email_queue.claimed_at is 'When it was put into a mail: at most 50 mails a minute.';
comment on column procjobs.notification_email_queue.processed_at is 'When it ended.';
