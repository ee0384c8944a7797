-- Invitations: who is invited where, and the hashes of what their letters open. Applied by 0017_invitations.py.

create table procjobs.letter_secrets (
  hash bytea primary key,
  notification_id uuid not null references procjobs.notification_jobs (id) on delete cascade,
  opens uuid not null,
  made_at timestamptz not null,
  constraint hash_is_sha256 check (octet_length(hash) = 32)
);
create index letter_secrets_notification on procjobs.letter_secrets (notification_id);
create index letter_secrets_opens on procjobs.letter_secrets (opens);
comment on table procjobs.letter_secrets is
  'Hashes of the secrets in links of letters. A worker makes a secret of 256 random bits for each try to deliver; only its '
  'SHA-256 comes here. All of one letter open the same, so that the link works in whichever copy arrived.';
comment on column procjobs.letter_secrets.hash is 'SHA-256 of the secret, as text in base64url, that the link ends in.';
comment on column procjobs.letter_secrets.notification_id is 'The letter: notification_jobs.id.';
comment on column procjobs.letter_secrets.opens is 'What it opens: for the template invitation pending_invites.id.';
comment on column procjobs.letter_secrets.made_at is 'When the letter was written.';

create table procjobs.pending_invites (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null,
  email text not null,
  email_key text not null generated always as (lower(email)) stored,
  role text not null,
  invited_by uuid not null,
  status text not null default 'PENDING',
  attempts integer not null default 0,
  max_attempts integer not null default 3,
  last_attempt timestamptz,
  error text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  expires_at timestamptz not null default now() + interval '30 days',
  accepted_at timestamptz,
  accepted_by uuid,
  notification_id uuid references procjobs.notification_jobs (id) on delete set null,
  constraint status_known check (status in ('PENDING', 'SENT', 'ACCEPTED', 'FAILED', 'EXPIRED', 'REVOKED')),
  constraint email_is_bare check (email = btrim(email) and email <> ''),
  constraint max_attempts_positive check (max_attempts > 0),
  constraint accepted_by_somebody check ((status = 'ACCEPTED') = (accepted_at is not null and accepted_by is not null))
);
create unique index pending_invites_open on procjobs.pending_invites (organization_id, email_key)
  where status in ('PENDING', 'SENT', 'FAILED');
create index pending_invites_status on procjobs.pending_invites (status, created_at);
create index pending_invites_organization on procjobs.pending_invites (organization_id, created_at desc);
create index pending_invites_expires on procjobs.pending_invites (expires_at) where status <> 'ACCEPTED';
create unique index pending_invites_notification on procjobs.pending_invites (notification_id);
comment on table procjobs.pending_invites is
  'Invitations into organizations, from the request to the acceptance. Made by procjobs.create_invite; a row that is inserted by '
  'hand gets its mail from procjobs.process_pending_invites.';
comment on column procjobs.pending_invites.organization_id is 'Where to: host_organizations.id.';
comment on column procjobs.pending_invites.email is 'Who is invited, as it was written.';
comment on column procjobs.pending_invites.email_key is 'The address in lower case, by which addresses are compared.';
comment on column procjobs.pending_invites.role is 'What the person becomes there: a role of the application.';
comment on column procjobs.pending_invites.invited_by is 'Who invites: host_people.id.';
comment on column procjobs.pending_invites.status is
  'PENDING: the mail is under way; SENT; FAILED: it did not get through; ACCEPTED, EXPIRED, REVOKED: it is over.';
comment on column procjobs.pending_invites.attempts is 'Tries to deliver the mail, since it was last sent by hand.';
comment on column procjobs.pending_invites.max_attempts is 'Tries before it is FAILED.';
comment on column procjobs.pending_invites.last_attempt is 'When the last try began.';
comment on column procjobs.pending_invites.error is 'Why the last try did not succeed.';
comment on column procjobs.pending_invites.created_at is 'When it was requested.';
comment on column procjobs.pending_invites.updated_at is 'When it last changed.';
comment on column procjobs.pending_invites.expires_at is 'Until when it can be accepted.';
comment on column procjobs.pending_invites.accepted_at is 'When it was accepted.';
comment on column procjobs.pending_invites.accepted_by is 'By whom: host_people.id.';
comment on column procjobs.pending_invites.notification_id is
  'The letter that counts: secrets of earlier ones open nothing. Null: there is none yet.';
