-- Undoes 0014_channels.sql. Notifications by apprise go.

delete from procjobs.notification_jobs where delivery_method = 'apprise';
alter table procjobs.notification_jobs
  drop constraint delivery_method_known,
  add constraint delivery_method_known check (delivery_method in ('email', 'sms', 'whatsapp', 'slack', 'webhook'));
comment on column procjobs.notification_jobs.delivery_method is 'How: email, sms, whatsapp, slack, webhook.';
comment on column procjobs.notification_jobs.message_id is 'Message-ID of the mail: the same at each try, so that a '
  'mail sent twice is recognised.';

alter table procjobs.notification_delivery_logs
  drop column http_status,
  drop column provider_id,
  drop column provider_code,
  drop column retry_after;
comment on column procjobs.notification_delivery_logs.address is 'Where it was sent.';
comment on column procjobs.notification_delivery_logs.provider is 'Who took it: host:port of the mail server.';
comment on column procjobs.notification_delivery_logs.message_id is 'Message-ID that was sent.';

drop function if exists procjobs.begin_delivery(uuid, text, text);
drop function if exists procjobs.finish_delivery(bigint, text, integer, text, integer, text, text, text, text, text, double precision);
