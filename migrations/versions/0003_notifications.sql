-- Notifications: what is to be sent to whom, and every try to deliver it. Applied by 0003_notifications.py.

create table procjobs.notification_jobs (
  id uuid primary key default gen_random_uuid(),
  recipient_id uuid not null,
  group_id uuid,
  update_id uuid,
  notification_type text not null,
  urgency text not null,
  delivery_method text not null,
  content jsonb not null,
  status text not null default 'pending',
  scheduled_for timestamptz not null,
  created_at timestamptz not null,
  created_by text not null,
  processed_at timestamptz,
  retry_count integer not null default 0,
  message_id text,
  last_error text,
  job_id bigint,
  constraint status_known check (status in ('pending', 'processing', 'sent', 'failed', 'cancelled')),
  constraint urgency_known check (urgency in ('urgent', 'normal', 'low')),
  constraint delivery_method_known check (delivery_method in ('email', 'sms', 'whatsapp', 'slack', 'webhook')),
  constraint content_is_an_object check (jsonb_typeof(content) = 'object'),
  constraint processed_when_over check (processed_at is not null or status in ('pending', 'processing'))
);
create unique index notification_jobs_job on procjobs.notification_jobs (job_id);
create index notification_jobs_recipient on procjobs.notification_jobs (recipient_id, created_at desc);
create index notification_jobs_group on procjobs.notification_jobs (group_id, created_at desc)
  where group_id is not null;
create index notification_jobs_created on procjobs.notification_jobs (created_at desc);
create index notification_jobs_open on procjobs.notification_jobs (scheduled_for)
  where status in ('pending', 'processing');
create index notification_jobs_failed on procjobs.notification_jobs (processed_at desc)
  where status = 'failed';
comment on table procjobs.notification_jobs is
  'One message to one recipient, from the request to its end. Made by procjobs.enqueue_notification_job; the work is '
    'done by the queue job job_id.';
comment on column procjobs.notification_jobs.id is 'What enqueue_notification_job returned.';
comment on column procjobs.notification_jobs.recipient_id is 'Who gets it: host_recipients.id.';
comment on column procjobs.notification_jobs.group_id is 'On behalf of which group: host_groups.id.';
comment on column procjobs.notification_jobs.update_id is 'About which update: host_updates.id. Null for digests and '
  'messages of their own.';
comment on column procjobs.notification_jobs.notification_type is 'immediate, digest, reminder, ...: a word of the '
  'application''s.';
comment on column procjobs.notification_jobs.urgency is 'urgent goes before normal, normal before low.';
comment on column procjobs.notification_jobs.delivery_method is 'How: email, sms, whatsapp, slack, webhook.';
comment on column procjobs.notification_jobs.content is 'subject, body, preview, action_label, action_url, and '
  'whatever else the application keeps with it.';
comment on column procjobs.notification_jobs.status is
  'pending (waits, also between two tries), processing (a worker is at it), sent, failed (final), cancelled.';
comment on column procjobs.notification_jobs.scheduled_for is 'Not sent before.';
comment on column procjobs.notification_jobs.created_at is 'When it was requested.';
comment on column procjobs.notification_jobs.created_by is 'Database user who requested it.';
comment on column procjobs.notification_jobs.processed_at is 'When it ended: sent, failed or cancelled.';
comment on column procjobs.notification_jobs.retry_count is 'Tries after the first.';
comment on column procjobs.notification_jobs.message_id is 'Message-ID of the mail: the same at each try, so that a '
  'mail sent twice is recognised.';
comment on column procjobs.notification_jobs.last_error is 'Why the last try failed, or why it was cancelled.';
comment on column procjobs.notification_jobs.job_id is 'The queue job that does the work: procjobs.jobs.id.';

create table procjobs.notification_delivery_logs (
  id bigint generated always as identity primary key,
  job_id uuid not null references procjobs.notification_jobs (id) on delete cascade,
  attempt integer not null,
  status text not null,
  delivery_method text not null,
  address text not null,
  worker text not null,
  started_at timestamptz not null,
  finished_at timestamptz,
  took_ms integer,
  provider text,
  smtp_code integer,
  smtp_reply text,
  message_id text,
  error text,
  constraint status_known check (status in ('sending', 'sent', 'deferred', 'refused', 'unknown')),
  constraint one_row_a_try unique (job_id, attempt)
);
create index notification_delivery_logs_started on procjobs.notification_delivery_logs (started_at desc);
comment on table procjobs.notification_delivery_logs is
  'One row a try to deliver a notification, written before the try (sending) and completed after it.';
comment on column procjobs.notification_delivery_logs.id is 'Number of the row.';
comment on column procjobs.notification_delivery_logs.job_id is 'Which notification: notification_jobs.id.';
comment on column procjobs.notification_delivery_logs.attempt is 'Number of the try, from 1.';
comment on column procjobs.notification_delivery_logs.status is
  'sending, sent, deferred (will be tried again), refused (final), unknown (contact was lost after the message was '
    'handed over: it may have arrived).';
comment on column procjobs.notification_delivery_logs.delivery_method is 'How it was sent.';
comment on column procjobs.notification_delivery_logs.address is 'Where it was sent.';
comment on column procjobs.notification_delivery_logs.worker is 'Which worker tried.';
comment on column procjobs.notification_delivery_logs.started_at is 'When the try began.';
comment on column procjobs.notification_delivery_logs.finished_at is 'When its result was known. Null while sending, '
  'or when the worker was lost.';
comment on column procjobs.notification_delivery_logs.took_ms is 'Milliseconds that the provider took, measured by '
  'the worker.';
comment on column procjobs.notification_delivery_logs.provider is 'Who took it: host:port of the mail server.';
comment on column procjobs.notification_delivery_logs.smtp_code is 'The mail server''s reply code; null when it gave '
  'none.';
comment on column procjobs.notification_delivery_logs.smtp_reply is 'The mail server''s words.';
comment on column procjobs.notification_delivery_logs.message_id is 'Message-ID that was sent.';
comment on column procjobs.notification_delivery_logs.error is 'What went wrong, in words.';

-- Known from the start, so that SQL can enqueue before the first worker has registered its tasks.
insert into procjobs.tasks (
  name, queue, priority, args_schema, execution, max_attempts, backoff_base, backoff_cap, backoff_jitter,
  description, registered_at, registered_by
)
values (
  'procjobs.send_notification', 'notifications', 0,
  '{"title": "procjobs.send_notification", "type": "object", "additionalProperties": false,
    "properties": {"notification_id": {"title": "Notification Id", "type": "string"}}, "required": ["notification_id"]}',
  'async', 3, interval '1 minute', interval '1 hour', false,
  'Delivers one row of procjobs.notification_jobs.', statement_timestamp(), 'migrate'
)
on conflict (name) do nothing;
