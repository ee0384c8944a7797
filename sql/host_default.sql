-- The default host bindings: small demo tables, so that a fresh procjobs has an application to work for.
-- An application brings its own host.sql (procjobs init writes a template); this file is then not applied.
-- Applied last at each migrate, so everything here may be applied again.

create schema if not exists procjobs_demo;
comment on schema procjobs_demo is
  'A small application to try procjobs with. Drop it when host.sql binds your own tables.';

create table if not exists procjobs_demo.people (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  email text,
  phone text,
  timezone text not null default 'UTC',
  is_admin boolean not null default false,
  wants_reports boolean not null default true,
  created_at timestamptz not null default now(),
  last_active_at timestamptz
);
create unique index if not exists people_email on procjobs_demo.people (lower(email));

create table if not exists procjobs_demo.organizations (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  timezone text not null default 'UTC',
  logo_url text
);

create table if not exists procjobs_demo.memberships (
  organization_id uuid not null references procjobs_demo.organizations (id) on delete cascade,
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  role text not null default 'member' check (role in ('owner', 'admin', 'member')),
  joined_at timestamptz not null default now(),
  removed_at timestamptz,
  primary key (organization_id, person_id)
);
create index if not exists memberships_person on procjobs_demo.memberships (person_id);

create table if not exists procjobs_demo.recipients (
  id uuid primary key default gen_random_uuid(),
  owner_id uuid not null references procjobs_demo.people (id) on delete cascade,
  name text not null,
  relationship text,
  email text,
  phone text,
  timezone text not null default 'UTC'
);
alter table procjobs_demo.recipients add column if not exists slack text, add column if not exists webhook_url text;
create index if not exists recipients_owner on procjobs_demo.recipients (owner_id);

create table if not exists procjobs_demo.groups (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid references procjobs_demo.organizations (id) on delete cascade,
  name text not null
);

-- A recipient here is a row of recipients or of people, hence no foreign key.
create table if not exists procjobs_demo.group_recipients (
  group_id uuid not null references procjobs_demo.groups (id) on delete cascade,
  recipient_id uuid not null,
  muted_until timestamptz,
  primary key (group_id, recipient_id)
);
create index if not exists group_recipients_recipient on procjobs_demo.group_recipients (recipient_id);

create table if not exists procjobs_demo.updates (
  id uuid primary key default gen_random_uuid(),
  group_id uuid not null references procjobs_demo.groups (id) on delete cascade,
  author_id uuid not null references procjobs_demo.people (id) on delete cascade,
  content_type text not null default 'text',
  title text not null,
  body text,
  url text,
  image_url text,
  created_at timestamptz not null default now()
);
create index if not exists updates_group on procjobs_demo.updates (group_id, created_at desc);

create table if not exists procjobs_demo.update_reads (
  update_id uuid not null references procjobs_demo.updates (id) on delete cascade,
  recipient_id uuid not null,
  read_at timestamptz not null default now(),
  primary key (update_id, recipient_id)
);

create table if not exists procjobs_demo.inbox (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  kind text not null,
  title text not null,
  body text,
  url text,
  created_at timestamptz not null default now(),
  read_at timestamptz
);
create index if not exists inbox_person on procjobs_demo.inbox (person_id, created_at desc);

create table if not exists procjobs_demo.events (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references procjobs_demo.organizations (id) on delete cascade,
  title text not null,
  starts_at timestamptz not null,
  ends_at timestamptz,
  timezone text not null default 'UTC',
  location text,
  url text,
  is_cancelled boolean not null default false
);
create index if not exists events_starts on procjobs_demo.events (starts_at);

create table if not exists procjobs_demo.event_attendees (
  event_id uuid not null references procjobs_demo.events (id) on delete cascade,
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  remind_before interval default interval '1 day',
  primary key (event_id, person_id)
);

create table if not exists procjobs_demo.projects (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid references procjobs_demo.organizations (id) on delete cascade,
  name text not null,
  contact_id uuid references procjobs_demo.people (id) on delete set null,
  currency text not null default 'EUR',
  advance_paid_at timestamptz,
  balance_due numeric(12, 2) not null default 0,
  balance_paid_at timestamptz,
  payment_url text
);

create table if not exists procjobs_demo.subscriptions (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references procjobs_demo.organizations (id) on delete cascade,
  plan text not null,
  is_active boolean not null default true,
  monthly_price numeric(12, 2) not null,
  currency text not null default 'EUR',
  started_at timestamptz not null default now()
);

create table if not exists procjobs_demo.activity (
  id bigint generated always as identity primary key,
  organization_id uuid references procjobs_demo.organizations (id) on delete cascade,
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  kind text not null,
  happened_at timestamptz not null default now()
);
create index if not exists activity_happened on procjobs_demo.activity (organization_id, happened_at);

create table if not exists procjobs_demo.calendars (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid references procjobs_demo.organizations (id) on delete cascade,
  name text not null,
  feed_url text not null,
  timezone text not null default 'UTC',
  is_active boolean not null default true
);

create table if not exists procjobs_demo.calendar_members (
  calendar_id uuid not null references procjobs_demo.calendars (id) on delete cascade,
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  provider text not null default 'google',
  external_calendar_id text not null default 'primary',
  access_token text,
  primary key (calendar_id, person_id)
);

-- What grows old: tables whose rows are deleted, or marked, after a time. The policies for them stand at the end.

create index if not exists memberships_removed on procjobs_demo.memberships (removed_at) where removed_at is not null;

create table if not exists procjobs_demo.sessions (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  token_hash bytea not null unique,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);
create index if not exists sessions_expires on procjobs_demo.sessions (expires_at);
create index if not exists sessions_person on procjobs_demo.sessions (person_id);

create table if not exists procjobs_demo.email_verification_tokens (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  token_hash bytea not null unique,
  expires_at timestamptz not null
);
create index if not exists email_verification_tokens_expires on procjobs_demo.email_verification_tokens (expires_at);
create index if not exists email_verification_tokens_person on procjobs_demo.email_verification_tokens (person_id);

create table if not exists procjobs_demo.password_reset_tokens (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  token_hash bytea not null unique,
  expires_at timestamptz not null
);
create index if not exists password_reset_tokens_expires on procjobs_demo.password_reset_tokens (expires_at);
create index if not exists password_reset_tokens_person on procjobs_demo.password_reset_tokens (person_id);

create table if not exists procjobs_demo.deliverables (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references procjobs_demo.projects (id) on delete cascade,
  name text not null,
  status text not null default 'delivered' check (status in ('draft', 'delivered', 'expired')),
  delivered_at timestamptz
);
create index if not exists deliverables_delivered on procjobs_demo.deliverables (delivered_at) where status = 'delivered';
create index if not exists deliverables_project on procjobs_demo.deliverables (project_id);

create table if not exists procjobs_demo.invitations (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references procjobs_demo.organizations (id) on delete cascade,
  email text not null,
  status text not null default 'pending' check (status in ('pending', 'accepted', 'revoked')),
  expires_at timestamptz not null
);
create index if not exists invitations_expires on procjobs_demo.invitations (expires_at);
create index if not exists invitations_organization on procjobs_demo.invitations (organization_id);

create table if not exists procjobs_demo.audit_logs (
  id bigint generated always as identity primary key,
  person_id uuid references procjobs_demo.people (id) on delete set null,
  action text not null,
  created_at timestamptz not null default now()
);
create index if not exists audit_logs_created on procjobs_demo.audit_logs (created_at);
create index if not exists audit_logs_person on procjobs_demo.audit_logs (person_id);

create table if not exists procjobs_demo.logs (
  id bigint generated always as identity primary key,
  level text not null default 'info',
  message text not null,
  created_at timestamptz not null default now()
);
create index if not exists logs_created on procjobs_demo.logs (created_at);

-- A file that was uploaded, and the update that shows it; null until somebody posts it.
create table if not exists procjobs_demo.uploads (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references procjobs_demo.people (id) on delete cascade,
  update_id uuid references procjobs_demo.updates (id) on delete set null,
  key text not null unique,
  created_at timestamptz not null default now()
);
create index if not exists uploads_unused on procjobs_demo.uploads (created_at) where update_id is null;
create index if not exists uploads_person on procjobs_demo.uploads (person_id);
create index if not exists uploads_update on procjobs_demo.uploads (update_id);

create or replace view procjobs.host_people as
select p.id, p.name, p.email, p.phone, p.timezone, p.is_admin, p.wants_reports, p.created_at, p.last_active_at
from procjobs_demo.people p;

create or replace view procjobs.host_organizations as
select o.id, o.name, o.timezone, o.logo_url
from procjobs_demo.organizations o;

create or replace view procjobs.host_memberships as
select m.organization_id, m.person_id, m.role, m.joined_at
from procjobs_demo.memberships m
where m.removed_at is null;

create or replace view procjobs.host_recipients as
select p.id, p.id as owner_id, p.name, 'self'::text as relationship, p.email, p.phone, p.timezone,
  null::text as slack, null::text as webhook_url
from procjobs_demo.people p
union all
select r.id, r.owner_id, r.name, r.relationship, r.email, r.phone, r.timezone, r.slack, r.webhook_url
from procjobs_demo.recipients r;

create or replace view procjobs.host_groups as
select g.id, g.organization_id, g.name
from procjobs_demo.groups g;

create or replace view procjobs.host_group_recipients as
select g.group_id, g.recipient_id, g.muted_until
from procjobs_demo.group_recipients g;

create or replace view procjobs.host_updates as
select u.id, u.group_id, p.name as author_name, u.content_type, u.title, u.body, u.url, u.image_url, u.created_at
from procjobs_demo.updates u
join procjobs_demo.people p on p.id = u.author_id;

create or replace view procjobs.host_update_reads as
select r.update_id, r.recipient_id, r.read_at
from procjobs_demo.update_reads r;

create or replace view procjobs.host_inbox as
select i.id, i.person_id, i.kind, i.title, i.body, i.url, i.created_at, i.read_at
from procjobs_demo.inbox i;

create or replace view procjobs.host_events as
select e.id, e.organization_id, e.title, e.starts_at, e.ends_at, e.timezone, e.location, e.url, e.is_cancelled
from procjobs_demo.events e;

create or replace view procjobs.host_event_attendees as
select a.event_id, a.person_id, a.remind_before
from procjobs_demo.event_attendees a;

create or replace view procjobs.host_projects as
select p.id, p.organization_id, p.name, p.contact_id, p.currency, p.advance_paid_at,
  p.balance_due::numeric as balance_due, p.balance_paid_at, p.payment_url
from procjobs_demo.projects p;

create or replace view procjobs.host_subscriptions as
select s.id, s.organization_id, s.plan, s.is_active, s.monthly_price::numeric as monthly_price, s.currency, s.started_at
from procjobs_demo.subscriptions s;

create or replace view procjobs.host_activity as
select a.organization_id, a.person_id, a.kind, a.happened_at
from procjobs_demo.activity a;

create or replace view procjobs.host_calendars as
select c.id, c.organization_id, c.name, c.feed_url, c.timezone, c.is_active
from procjobs_demo.calendars c;

create or replace view procjobs.host_calendar_members as
select m.calendar_id, m.person_id, m.provider, m.external_calendar_id
from procjobs_demo.calendar_members m;

create or replace view procjobs.host_uploads as
select u.key
from procjobs_demo.uploads u;

create or replace function procjobs.host_find_person(p_email text)
returns uuid
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select p.id
  from procjobs_demo.people p
  where lower(p.email) = lower(btrim(p_email))
$$;

create or replace function procjobs.host_invitable_roles(p_inviter uuid, p_organization uuid)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    (
      select case m.role
          when 'owner' then array['owner', 'admin', 'member']
          when 'admin' then array['admin', 'member']
        end
      from procjobs_demo.memberships m
      where m.person_id = p_inviter
        and m.organization_id = p_organization
        and m.removed_at is null
    ), array[]::text[])
$$;

create or replace function procjobs.host_add_member(p_organization uuid, p_person uuid, p_role text)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  with added as (
    insert into procjobs_demo.memberships as m (organization_id, person_id, role)
    values (p_organization, p_person, p_role)
    on conflict (organization_id, person_id) do update
      set role = excluded.role, joined_at = excluded.joined_at, removed_at = null
      where m.removed_at is not null
    returning 1
  )
  select exists (select from added)
$$;

create or replace function procjobs.host_register_url(p_email text, p_continue text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select '/register?email=' || procjobs.url_encode(p_email) || '&continue=' || procjobs.url_encode(p_continue)
$$;

create or replace function procjobs.host_mute(p_recipient uuid, p_group uuid, p_until timestamptz)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  with changed as (
    update procjobs_demo.group_recipients
    set muted_until = p_until
    where recipient_id = p_recipient
      and group_id = p_group
      and muted_until is distinct from p_until
    returning 1
  )
  select exists (select from changed)
$$;

create or replace function procjobs.host_calendar_token(p_calendar uuid, p_person uuid)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select m.access_token
  from procjobs_demo.calendar_members m
  where m.calendar_id = p_calendar
    and m.person_id = p_person
$$;

-- The views run with the rights of their owner.
do $$
begin
  if to_regrole('procjobs_owner') is not null then
    grant usage on schema procjobs_demo to procjobs_owner;
    grant select, insert, update, delete on all tables in schema procjobs_demo to procjobs_owner;
  end if;
end
$$;

-- How long the demo's rows are kept. What was set since by hand stays.
select procjobs.set_table_policy(
  p.name, 'procjobs_demo.' || p.table_name, p.column_name, p.keep::interval, condition => p.condition, action => p.action,
  assignments => p.assignments::jsonb, run_as => case when procjobs.may_become('procjobs_owner') then 'procjobs_owner' end,
  description => p.description
)
from (values
  ('cleanup_removed_team_members', 'memberships', 'removed_at', '90 days', null, 'delete', null, 'Members 90 days after they were removed'),
  ('cleanup_expired_sessions', 'sessions', 'expires_at', '0', null, 'delete', null, 'Sessions that have expired'),
  ('cleanup_expired_email_verification_tokens', 'email_verification_tokens', 'expires_at', '0', null, 'delete', null,
    'Tokens of address checks that have expired'),
  ('cleanup_expired_password_reset_tokens', 'password_reset_tokens', 'expires_at', '0', null, 'delete', null,
    'Tokens of forgotten passwords that have expired'),
  ('expire_deliverables', 'deliverables', 'delivered_at', '365 days', 'status = ''delivered''', 'set', '{"status": "expired"}',
    'Deliverables are open for a year'),
  ('cleanup_expired_invitations', 'invitations', 'expires_at', '30 days', 'status <> ''accepted''', 'delete', null,
    'Invitations 30 days after they expired'),
  ('cleanup_audit_logs', 'audit_logs', 'created_at', '30 days', null, 'delete', null, 'The audit log, 30 days of it'),
  ('cleanup_logs', 'logs', 'created_at', '90 days', null, 'delete', null, 'The log, 90 days of it'),
  ('cleanup_orphaned_uploads', 'uploads', 'created_at', '1 day', 'update_id is null', 'delete', null,
    'Uploads that nobody posted within a day')
) as p (name, table_name, column_name, keep, condition, action, assignments, description)
where not exists (select from procjobs.table_policies known where known.name = p.name);

select procjobs.check_host_bindings();
