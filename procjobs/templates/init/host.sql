-- host.sql: what procjobs may know about your application.
--
-- procjobs owns none of your tables. It reads people, organizations and what else it needs through the views and
-- functions below, which you bind to your own tables. This file is yours: keep it with your application. procjobs
-- migrate applies it last, and again when it has changed, so everything in it must bear being applied again.
--
-- As written here, every view is empty and procjobs runs. To bind one, put your own query in place of the one there;
-- an example over made-up tables, in a schema app, stands after each. Leave out (delete) what you do not need: whatever
-- needs it then says so. Columns may stand in any order and there may be more; names and types must be these, so cast
-- where yours differ (email::text as email). procjobs migrate refuses a binding that does not fit and says why.
--
-- Identifiers are uuid. If yours are numbers, derive one and never change how:
--   md5('user:' || u.id::text)::uuid as id   -- and: create index on app.users ((md5('user:' || id::text)::uuid))
--
-- The views are read with the rights of the role procjobs_owner, so it must be able to read your tables.

do $$
begin
  if to_regrole('procjobs_owner') is not null then
    -- grant usage on schema app to procjobs_owner;
    -- grant select on all tables in schema app to procjobs_owner;
    -- grant insert, update on app.members, app.subscribers to procjobs_owner;  -- for host_add_member and host_mute
    null;
  end if;
end
$$;


-- People with an account.
-- Needed for: everything.
create or replace view procjobs.host_people as
select
  null::uuid as id,                     -- Identifies the person, for ever.
  null::text as name,                   -- How to address the person.
  null::text as email,                  -- Address for mail; null if there is none.
  null::text as phone,                  -- Number for SMS and WhatsApp as +4670...; null if there is none.
  null::text as timezone,               -- IANA zone in which the person's days begin.
  null::boolean as is_admin,            -- May operate procjobs: run, cancel, retry, see everything.
  null::boolean as wants_reports,       -- Gets the daily usage report.
  null::timestamptz as created_at,      -- When the account was made.
  null::timestamptz as last_active_at   -- Last seen; null if never.
where false;
/* for example:
  select u.id, u.full_name as name, u.email::text as email, u.mobile as phone, u.tz as timezone,
    u.role = 'staff' as is_admin, u.email_reports_enabled as wants_reports, u.created_at, u.last_seen as last_active_at
  from app.users u
  where u.deleted_at is null
*/

-- Organizations, teams or tenants that people belong to.
-- Needed for: every mail, invitations, reminders, reports, invoices.
create or replace view procjobs.host_organizations as
select
  null::uuid as id,        -- Identifies the organization, for ever.
  null::text as name,      -- Shown in mails and pages.
  null::text as timezone,  -- IANA zone of its reports and reminders.
  null::text as logo_url   -- Picture for the head of its mails; null for the name in letters.
where false;
/* for example:
  select o.id, o.name, 'UTC' as timezone, o.logo as logo_url
  from app.organizations o
*/

-- Who belongs to which organization: present members only, at most one row each.
-- Needed for: invitations, reports.
create or replace view procjobs.host_memberships as
select
  null::uuid as organization_id,   -- host_organizations.id
  null::uuid as person_id,         -- host_people.id
  null::text as role,              -- The application's own word: owner, admin, member, ...
  null::timestamptz as joined_at   -- Since when.
where false;
/* for example:
  select m.organization_id, m.user_id as person_id, m.role::text as role, m.created_at as joined_at
  from app.members m
  where m.removed_at is null
*/

-- Whoever may receive something: people themselves, and those whom they look after.
-- Needed for: every mail, digests.
create or replace view procjobs.host_recipients as
select
  null::uuid as id,            -- Identifies the recipient; for a person, the person's own id.
  null::uuid as owner_id,      -- host_people.id of the person who may see and cancel what goes to the recipient.
  null::text as name,          -- How to address the recipient.
  null::text as relationship,  -- self, grandmother, client, ...: as the owner calls the recipient.
  null::text as email,         -- Address for mail; null if there is none.
  null::text as phone,         -- Number for SMS and WhatsApp; null if there is none.
  null::text as timezone,      -- IANA zone in which digests and times are shown.
  null::text as slack,         -- Slack channel or member to write to; null if there is none.
  null::text as webhook_url    -- Address that is called for the recipient; null if there is none.
where false;
/* for example:
  select u.id, u.id as owner_id, u.full_name as name, 'self' as relationship, u.email::text as email,
    u.mobile as phone, u.tz as timezone, u.slack_member as slack, null::text as webhook_url
  from app.users u
  where u.deleted_at is null
*/

-- Groups that share updates: families, channels, projects.
-- Needed for: every mail, digests.
create or replace view procjobs.host_groups as
select
  null::uuid as id,               -- Identifies the group, for ever.
  null::uuid as organization_id,  -- host_organizations.id; null if it belongs to none.
  null::text as name              -- Shown in mails.
where false;
/* for example:
  select g.id, g.organization_id, g.title as name
  from app.channels g
*/

-- Who receives what a group shares: at most one row each.
-- Needed for: every mail, digests.
create or replace view procjobs.host_group_recipients as
select
  null::uuid as group_id,            -- host_groups.id
  null::uuid as recipient_id,        -- host_recipients.id
  null::timestamptz as muted_until   -- No digest before; infinity: nothing until unmuted; null: not muted.
where false;
/* for example:
  select s.channel_id as group_id, s.user_id as recipient_id, s.muted_until
  from app.subscribers s
*/

-- What was shared in groups.
-- Needed for: every mail, digests.
create or replace view procjobs.host_updates as
select
  null::uuid as id,                 -- Identifies the update, for ever.
  null::uuid as group_id,           -- host_groups.id
  null::text as author_name,        -- Who shared it.
  null::text as content_type,       -- photos, milestones, text, ...: digests filter by it.
  null::text as title,              -- One line.
  null::text as body,               -- Plain text; null if there is none.
  null::text as url,                -- Where to read it; null if nowhere.
  null::text as image_url,          -- Picture to show with it; null if there is none.
  null::timestamptz as created_at   -- When it was shared.
where false;
/* for example:
  select p.id, p.channel_id as group_id, u.full_name as author_name, p.kind as content_type, p.title, p.body,
    'https://app.example.com/posts/' || p.id as url, p.picture_url as image_url, p.created_at
  from app.posts p
  join app.users u on u.id = p.author_id
*/

-- Which recipient has read which update.
-- Needed for: digests.
create or replace view procjobs.host_update_reads as
select
  null::uuid as update_id,       -- host_updates.id
  null::uuid as recipient_id,    -- host_recipients.id
  null::timestamptz as read_at   -- When.
where false;
/* for example:
  select r.post_id as update_id, r.user_id as recipient_id, r.at as read_at
  from app.post_reads r
*/

-- The application's own in-app notices, which are also mailed in batches.
-- Needed for: e-mail batches.
create or replace view procjobs.host_inbox as
select
  null::uuid as id,                 -- Identifies the notice, for ever.
  null::uuid as person_id,          -- host_people.id
  null::text as kind,               -- comment, approval, file, ...
  null::text as title,              -- One line.
  null::text as body,               -- Plain text; null if there is none.
  null::text as url,                -- Where it leads; null if nowhere.
  null::timestamptz as created_at,  -- When it happened.
  null::timestamptz as read_at      -- When it was read in the application; null if unread.
where false;
/* for example:
  select n.id, n.user_id as person_id, n.type as kind, n.title, n.body, n.link as url, n.created_at, n.read_at
  from app.notifications n
*/

-- Events that people attend.
-- Needed for: event reminders.
create or replace view procjobs.host_events as
select
  null::uuid as id,                -- Identifies the event, for ever.
  null::uuid as organization_id,   -- host_organizations.id
  null::text as title,             -- One line.
  null::timestamptz as starts_at,  -- When it begins.
  null::timestamptz as ends_at,    -- When it ends; null if open.
  null::text as timezone,          -- IANA zone of the place.
  null::text as location,          -- Where; null if not known.
  null::text as url,               -- Its page; null if there is none.
  null::boolean as is_cancelled    -- No reminders go out for it.
where false;
/* for example:
  select e.id, e.organization_id, e.title, e.starts_at, e.ends_at, e.tz as timezone, e.place as location,
    'https://app.example.com/events/' || e.id as url, e.cancelled_at is not null as is_cancelled
  from app.events e
*/

-- Who comes to which event: at most one row each.
-- Needed for: event reminders.
create or replace view procjobs.host_event_attendees as
select
  null::uuid as event_id,           -- host_events.id
  null::uuid as person_id,          -- host_people.id
  null::interval as remind_before   -- How long before the start to remind; null: not at all.
where false;
/* for example:
  select a.event_id, a.user_id as person_id, interval '1 day' as remind_before
  from app.attendances a
  where a.answer = 'yes'
*/

-- Projects paid in two parts: an advance and a balance.
-- Needed for: payment reminders.
create or replace view procjobs.host_projects as
select
  null::uuid as id,                      -- Identifies the project, for ever.
  null::uuid as organization_id,         -- host_organizations.id; null if it belongs to none.
  null::text as name,                    -- Shown in reminders.
  null::uuid as contact_id,              -- host_people.id of the primary contact, who is reminded; null: nobody.
  null::text as currency,                -- ISO 4217: EUR, USD, ...
  null::timestamptz as advance_paid_at,  -- When the advance was paid; null if it was not.
  null::numeric as balance_due,          -- What is left to pay, in the currency.
  null::timestamptz as balance_paid_at,  -- When the balance was paid; null if it was not.
  null::text as payment_url              -- Where to pay; null if nowhere.
where false;
/* for example:
  select p.id, p.organization_id, p.name, t.user_id as contact_id, p.currency, s.advance_paid_at,
    s.balance as balance_due, s.balance_paid_at, 'https://app.example.com/pay/' || p.id as payment_url
  from app.projects p
  join app.project_payment_status s on s.project_id = p.id
  left join app.project_team t on t.project_id = p.id and t.is_primary_contact
*/

-- What organizations subscribe to.
-- Needed for: invoices.
create or replace view procjobs.host_subscriptions as
select
  null::uuid as id,                 -- Identifies the subscription, for ever.
  null::uuid as organization_id,    -- host_organizations.id
  null::text as plan,               -- Name of the plan.
  null::boolean as is_active,       -- Invoiced on the first of the month.
  null::numeric as monthly_price,   -- For one month, in the currency.
  null::text as currency,           -- ISO 4217.
  null::timestamptz as started_at   -- Since when.
where false;
/* for example:
  select s.id, s.organization_id, s.plan, s.status = 'active' as is_active, s.price as monthly_price, s.currency,
    s.created_at as started_at
  from app.subscriptions s
*/

-- What people did: the figures of reports.
-- Needed for: reports.
create or replace view procjobs.host_activity as
select
  null::uuid as organization_id,     -- host_organizations.id; null if none.
  null::uuid as person_id,           -- host_people.id
  null::text as kind,                -- login, upload, comment, ...
  null::timestamptz as happened_at   -- When.
where false;
/* for example:
  select l.organization_id, l.user_id as person_id, l.action as kind, l.created_at as happened_at
  from app.audit_logs l
*/

-- Calendars fed from an ICS address.
-- Needed for: calendar sync.
create or replace view procjobs.host_calendars as
select
  null::uuid as id,               -- Identifies the calendar, for ever.
  null::uuid as organization_id,  -- host_organizations.id; null if it belongs to none.
  null::text as name,             -- Shown in pages.
  null::text as feed_url,         -- Its ICS address.
  null::text as timezone,         -- IANA zone of events that name none.
  null::boolean as is_active      -- Fetched every five minutes.
where false;
/* for example:
  select c.id, c.family_id as organization_id, c.name, c.ics_url as feed_url, c.tz as timezone, c.enabled as is_active
  from app.calendars c
*/

-- Onto whose own calendar the events are pushed: at most one row each.
-- Needed for: calendar sync.
create or replace view procjobs.host_calendar_members as
select
  null::uuid as calendar_id,           -- host_calendars.id
  null::uuid as person_id,             -- host_people.id
  null::text as provider,              -- google
  null::text as external_calendar_id   -- The calendar's name at the provider, e.g. primary.
where false;
/* for example:
  select m.calendar_id, m.user_id as person_id, 'google' as provider, m.google_calendar_id as external_calendar_id
  from app.calendar_members m
  where m.google_refresh_token is not null
*/

-- Files of the uploads' storage that rows refer to. What is in the storage and not here is removed after a day.
-- Needed for: clean-up of orphaned uploads.
create or replace view procjobs.host_uploads as
select
  null::text as key   -- Name of the file in the storage: 2031/05/photo.jpg.
where false;
/* for example:
  select f.storage_key as key
  from app.files f
*/

-- The person who has this e-mail address, in any case of letters; null if nobody has.
-- Needed for: invitations.
create or replace function procjobs.host_find_person(p_email text)
returns uuid
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select null::uuid
$$;
/* for example:
  select u.id from app.users u where lower(u.email) = lower(btrim(p_email)) and u.deleted_at is null
*/

-- Roles that the person may give to somebody invited into the organization; empty: may not invite.
-- Needed for: invitations.
create or replace function procjobs.host_invitable_roles(p_inviter uuid, p_organization uuid)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select array[]::text[]
$$;
/* for example:
  select coalesce((
    select case m.role when 'owner' then array['admin', 'member'] when 'admin' then array['member'] end
    from app.members m
    where m.user_id = p_inviter and m.organization_id = p_organization and m.removed_at is null), array[]::text[])
*/

-- Adds the person to the organization; true if added, false if a member already, whose role then stays. Must be safe
-- to call twice at once.
-- Needed for: invitations.
create or replace function procjobs.host_add_member(p_organization uuid, p_person uuid, p_role text)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  select false
$$;
/* for example:
  with added as (
    insert into app.members (organization_id, user_id, role) values (p_organization, p_person, p_role)
    on conflict (organization_id, user_id) do nothing
    returning 1)
  select exists (select from added)
*/

-- Where somebody without an account registers: the e-mail pre-filled, going on to p_continue afterwards. A URL, or a
-- path below base_url.
-- Needed for: invitations.
create or replace function procjobs.host_register_url(p_email text, p_continue text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select '/register?email=' || procjobs.url_encode(p_email) || '&continue=' || procjobs.url_encode(p_continue)
$$;

-- Mutes a group for a recipient (one-click unsubscribe); null unmutes. True if something changed.
-- Needed for: unsubscribing from a group.
create or replace function procjobs.host_mute(p_recipient uuid, p_group uuid, p_until timestamptz)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  select false
$$;
/* for example:
  with changed as (
    update app.subscribers set muted_until = p_until
    where user_id = p_recipient and channel_id = p_group and muted_until is distinct from p_until
    returning 1)
  select exists (select from changed)
*/

-- Access token for the person's calendar at the provider; null if access was never given or was withdrawn. A function,
-- so that the secret is in no view.
-- Needed for: calendar sync.
create or replace function procjobs.host_calendar_token(p_calendar uuid, p_person uuid)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select null::text
$$;
/* for example:
  select a.access_token from app.google_accounts a where a.user_id = p_person and a.expires_at > now()
*/

-- How long rows of your tables are kept. Each policy is worked by the schedule of its name; the names below have one out
-- of the box. It runs with the rights of whoever migrates, or of the role given as run_as => 'app_owner', of which the login
-- of your workers must be a member. What is set here holds again at each migrate that applies this file.
/* for example:
  select procjobs.set_table_policy('cleanup_expired_sessions', 'app.sessions', 'expires_at', '0');
  select procjobs.set_table_policy('cleanup_expired_email_verification_tokens', 'app.email_tokens', 'expires_at', '0');
  select procjobs.set_table_policy('cleanup_expired_password_reset_tokens', 'app.reset_tokens', 'expires_at', '0');
  select procjobs.set_table_policy('cleanup_removed_team_members', 'app.members', 'removed_at', '90 days');
  select procjobs.set_table_policy('expire_deliverables', 'app.deliverables', 'delivered_at', '365 days',
    action => 'set', assignments => '{"status": "expired"}');
  select procjobs.set_table_policy('cleanup_expired_invitations', 'app.invitations', 'expires_at', '30 days');
  select procjobs.set_table_policy('cleanup_audit_logs', 'app.audit_logs', 'created_at', '30 days');
  select procjobs.set_table_policy('cleanup_logs', 'app.logs', 'created_at', '90 days');
  select procjobs.set_table_policy('cleanup_orphaned_uploads', 'app.files', 'created_at', '1 day',
    condition => 'not exists (select from app.posts p where p.file_id = t.id)');
*/

-- Last line: checks that every binding has the columns and types above, and takes the functions from PUBLIC.
select procjobs.check_host_bindings();
