-- Mail: addresses that bounced, subscriptions that were ended, and the secret of unsubscribe links. Applied by 0013_mail.py.

create table procjobs.suppressed_addresses (
  address text primary key,
  since timestamptz not null,
  reason text not null,
  code integer,
  reply text,
  notification_id uuid,
  added_by text not null
);
create index suppressed_addresses_since on procjobs.suppressed_addresses (since desc);
comment on table procjobs.suppressed_addresses is
  'Addresses to which no mail is sent any more: the mail server said that there is no such mailbox, or somebody added them.';
comment on column procjobs.suppressed_addresses.address is 'The address, in lower case: see procjobs.normalize_address.';
comment on column procjobs.suppressed_addresses.since is 'When it was put here.';
comment on column procjobs.suppressed_addresses.reason is 'Why: bounced, or what procjobs.suppress_address was told.';
comment on column procjobs.suppressed_addresses.code is 'The mail server''s reply code; null when somebody added the address.';
comment on column procjobs.suppressed_addresses.reply is 'The mail server''s words.';
comment on column procjobs.suppressed_addresses.notification_id is 'Which notification bounced: notification_jobs.id, which may be gone.';
comment on column procjobs.suppressed_addresses.added_by is 'Database user who put it here.';

create table procjobs.unsubscriptions (
  addressee text not null,
  kind text not null,
  at timestamptz not null,
  primary key (addressee, kind)
);
comment on table procjobs.unsubscriptions is
  'Who does not want which kind of mail any more. Groups are muted in the application instead: procjobs.host_mute.';
comment on column procjobs.unsubscriptions.addressee is
  'host_recipients.id or host_people.id, which are one person''s same; or a bare address in lower case.';
comment on column procjobs.unsubscriptions.kind is 'The template that is not sent: tips, digest, ...: see procjobs.subscription_templates.';
comment on column procjobs.unsubscriptions.at is 'When.';

create table procjobs.secrets (
  name text primary key,
  secret bytea not null,
  created_at timestamptz not null,
  constraint secret_is_long_enough check (octet_length(secret) between 32 and 64)
);
comment on table procjobs.secrets is
  'Keys that signatures are made with. No role may read it but the owner; it goes with a dump, so that links stay good.';
comment on column procjobs.secrets.name is 'What it signs: unsubscribe.';
comment on column procjobs.secrets.secret is 'Random bytes.';
comment on column procjobs.secrets.created_at is 'Since when.';

-- Each gen_random_uuid() has 122 random bits from the system's source.
insert into procjobs.secrets (name, secret, created_at)
values (
  'unsubscribe',
  sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
  statement_timestamp()
);

-- One returns more, the other is told more: made anew by sql/functions/packs/delivery_tries.sql.
drop function if exists procjobs.begin_delivery(uuid, text, text);
drop function if exists procjobs.finish_delivery(bigint, text, integer, text, integer, text, text);
