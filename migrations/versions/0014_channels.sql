-- Channels beside mail: what their providers say of a try. Applied by 0014_channels.py.

alter table procjobs.notification_jobs
  drop constraint delivery_method_known,
  add constraint delivery_method_known
    check (delivery_method in ('email', 'sms', 'whatsapp', 'slack', 'webhook', 'apprise'));
comment on column procjobs.notification_jobs.delivery_method is 'How: email, sms, whatsapp, slack, webhook, apprise.';
comment on column procjobs.notification_jobs.message_id is
  'Of a mail its Message-ID, else the idempotency key: the same at each try, so that what was sent twice is recognised.';

alter table procjobs.notification_delivery_logs
  add column http_status integer,
  add column provider_id text,
  add column provider_code text,
  add column retry_after timestamptz;
comment on column procjobs.notification_delivery_logs.address is
  'Where it was sent: of a phone number the ends, of a webhook the host.';
comment on column procjobs.notification_delivery_logs.provider is
  'Who took it: host:port of the mail server; twilio, meta, slack, webhook, apprise; none where nothing was set up.';
comment on column procjobs.notification_delivery_logs.message_id is 'Message-ID or idempotency key that was sent.';
comment on column procjobs.notification_delivery_logs.http_status is
  'HTTP status of the provider''s answer; null for mail, and when there was no answer.';
comment on column procjobs.notification_delivery_logs.provider_id is 'The provider''s own id of the message.';
comment on column procjobs.notification_delivery_logs.provider_code is
  'The provider''s own name or number of the error: 21211, channel_not_found, ...';
comment on column procjobs.notification_delivery_logs.retry_after is
  'The provider asked not to be tried before; the next try is not.';

-- They return and take more now: made anew by sql/functions/packs/delivery_tries.sql.
drop function if exists procjobs.begin_delivery(uuid, text, text);
drop function if exists procjobs.finish_delivery(bigint, text, integer, text, integer, text, text, text);
