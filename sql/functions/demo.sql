-- The demo: an organization, people in several time zones, families and teams, and mail for them, all made up.
-- Owns:        the rows it puts into procjobs_demo (tables: sql/host_default.sql). Identifiers are the same everywhere.
-- Lock order:  organizations, people, then what refers to them; the first time, a few notifications.

create or replace function procjobs.demo_id(p_name text)
returns uuid
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select md5('procjobs demo: ' || p_name)::uuid
$$;
comment on function procjobs.demo_id(text) is 'The identifier of a thing of the demo, by its name; the same in every '
  'database.';

create or replace function procjobs.demo_is_bound()
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select
    from pg_rewrite r
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where r.ev_class = to_regclass('procjobs.host_recipients')
      and d.refclassid = 'pg_class'::regclass
      and d.refobjid = to_regclass('procjobs_demo.recipients')
  )
$$;
comment on function procjobs.demo_is_bound() is 'Whether the application is the demo''s small tables: no host.sql of somebody''s own was applied.';

create or replace function procjobs.demo_register(p_email text, p_name text)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if not procjobs.demo_is_bound() or p_email is null or procjobs.mail_address_problem(btrim(p_email)) is not null then
    return null;
  end if;
  insert into procjobs_demo.people (name, email)
  values (left(coalesce(nullif(btrim(p_name), ''), split_part(btrim(p_email), '@', 1)), 100), btrim(p_email))
  on conflict do nothing;
  return procjobs.host_find_person(p_email);
end
$$;
comment on function procjobs.demo_register(text, text) is
  'Makes an account of the demo, whose page /register calls it; whoever has the address already keeps it. Null: no address, or not the demo.';

create or replace function procjobs.seed_demo_people()
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_first boolean;
begin
  insert into procjobs_demo.organizations (id, name, timezone)
  values
    (procjobs.demo_id('studio'), 'Harbour Lane', 'Europe/Stockholm'),
    (procjobs.demo_id('press'), 'Fjord & Field Press', 'Europe/Oslo')
  on conflict do nothing;
  v_first := found;

  insert into procjobs_demo.people (id, name, email, phone, timezone, is_admin, created_at, last_active_at)
  select procjobs.demo_id(p.key), p.name, p.key || '@harbourlane.example', p.phone, p.timezone, p.key = 'tomas',
    v_now - p.since, v_now - p.seen
  from (values
    ('maya', 'Maya Lindgren', '+46701740605', 'Europe/Stockholm', interval '400 days', interval '5 minutes'),
    ('tomas', 'Tomás Okafor', '+12025550143', 'America/New_York', interval '400 days', interval '3 hours'),
    ('aiko', 'Aiko Tanaka', null, 'Asia/Tokyo', interval '90 days', interval '20 hours'),
    ('priya', 'Priya Raman', null, 'Asia/Kolkata', interval '45 days', interval '2 days'),
    ('liam', 'Liam O''Connor', '+61491570156', 'Australia/Lord_Howe', interval '6 days', interval '5 days')
  ) p (key, name, phone, timezone, since, seen)
  on conflict do nothing;

  insert into procjobs_demo.memberships (organization_id, person_id, role, joined_at)
  select procjobs.demo_id(m.organization), procjobs.demo_id(m.person), m.role, v_now - interval '6 days'
  from (values
    ('studio', 'tomas', 'owner'), ('studio', 'maya', 'admin'), ('studio', 'aiko', 'member'),
    ('studio', 'priya', 'member'),
    ('press', 'liam', 'owner'), ('press', 'maya', 'member')
  ) m (organization, person, role)
  on conflict do nothing;

  insert into procjobs_demo.recipients (id, owner_id, name, relationship, email, phone, timezone)
  select procjobs.demo_id(r.key), procjobs.demo_id(r.owner), r.name, r.relationship,
    r.key || '@family.example', r.phone, r.timezone
  from (values
    ('ingrid', 'maya', 'Ingrid', 'grandmother', '+46701740633', 'Europe/Stockholm'),
    ('ben', 'maya', 'Ben', 'uncle', '+12025550187', 'America/Los_Angeles'),
    ('chidi', 'tomas', 'Chidi', 'brother', null, 'Africa/Lagos')
  ) r (key, owner, name, relationship, phone, timezone)
  on conflict do nothing;
  return v_first;
end
$$;
comment on function procjobs.seed_demo_people() is 'Organizations, people, members and recipients of the demo. True '
  'the first time.';

create or replace function procjobs.seed_demo_updates()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
begin
  insert into procjobs_demo.groups (id, organization_id, name)
  values
    (procjobs.demo_id('family'), procjobs.demo_id('studio'), 'The Lindgrens'),
    (procjobs.demo_id('launch'), procjobs.demo_id('studio'), 'Launch team')
  on conflict do nothing;

  insert into procjobs_demo.group_recipients (group_id, recipient_id, muted_until)
  select procjobs.demo_id(g.in_group), procjobs.demo_id(g.recipient), g.muted_until
  from (values
    ('family', 'ingrid', null), ('family', 'maya', null), ('family', 'ben', timestamptz 'infinity'),
    ('launch', 'tomas', null), ('launch', 'aiko', null), ('launch', 'priya', null), ('launch', 'maya', null),
    ('launch', 'chidi', null)
  ) g (in_group, recipient, muted_until)
  on conflict do nothing;

  insert into procjobs_demo.updates (id, group_id, author_id, content_type, title, body, url, created_at)
  select procjobs.demo_id(u.key), procjobs.demo_id(u.in_group), procjobs.demo_id(u.author), u.content_type,
    u.title, u.body,
    'https://harbourlane.example/updates/' || u.key, v_now - u.ago
  from (values
    ('first-steps', 'family', 'maya', 'milestones', 'First steps!',
      'Four steps from the sofa to the bookshelf, and then a very surprised sit-down.', interval '3 hours'),
    ('lake', 'family', 'maya', 'photos', 'A day at the lake',
      'Twelve pictures: the jetty, the ducks, and somebody who did not want to leave the water.', interval '1 day'),
    ('sleep', 'family', 'maya', 'text', 'She slept through the night', 'All of it. We hardly know what to do with '
      'ourselves.', interval '2 days'),
    ('tooth', 'family', 'maya', 'milestones', 'Tooth number six', null, interval '9 days'),
    ('trailer', 'launch', 'aiko', 'photos', 'Trailer, third cut', 'Colours are final. Please look at the last eight '
      'seconds.', interval '50 minutes'),
    ('signed', 'launch', 'tomas', 'milestones', 'Northern Lights has signed', 'The advance is in. Delivery in six '
      'weeks.', interval '5 days'),
    ('score', 'launch', 'priya', 'text', 'The score is recorded', 'Two takes of each cue; the second of number four '
      'is the one.', interval '30 hours')
  ) u (key, in_group, author, content_type, title, body, ago)
  on conflict do nothing;

  insert into procjobs_demo.update_reads (update_id, recipient_id, read_at)
  select procjobs.demo_id(r.key), procjobs.demo_id(r.recipient), v_now - interval '1 hour'
  from (values ('tooth', 'ingrid'), ('sleep', 'ingrid'), ('signed', 'aiko'), ('signed', 'priya')) r (key, recipient)
  on conflict do nothing;

  insert into procjobs_demo.inbox (id, person_id, kind, title, body, url, created_at)
  select procjobs.demo_id('notice ' || i.key), procjobs.demo_id(i.person), i.kind, i.title, i.body,
    'https://harbourlane.example/inbox', v_now - i.ago
  from (values
    ('cut', 'tomas', 'approval', 'Aiko asks you to approve the third cut', null, interval '45 minutes'),
    ('note', 'tomas', 'comment', 'Priya commented on "Score, cue 4"', 'The second take, please.', interval '20 '
      'minutes'),
    ('file', 'aiko', 'file', 'Tomás shared the signed contract', null, interval '5 days')
  ) i (key, person, kind, title, body, ago)
  on conflict do nothing;
end
$$;
comment on function procjobs.seed_demo_updates() is 'Groups, what they shared and who has read it, and notices, in '
  'the demo.';

create or replace function procjobs.seed_demo_business()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_studio uuid := procjobs.demo_id('studio');
begin
  insert into procjobs_demo.events (id, organization_id, title, starts_at, ends_at, timezone, location, url)
  select procjobs.demo_id(e.key), v_studio, e.title, date_trunc('hour', v_now) + e.start,
    date_trunc('hour', v_now) + e.start + e.length,
    e.timezone, e.location, 'https://harbourlane.example/events/' || e.key
  from (values
    ('screening', 'Screening of the third cut', interval '26 hours', interval '90 minutes', 'Europe/Stockholm', 'Room '
      '2, Harbour Lane'),
    ('party', 'Launch party', interval '9 days', interval '5 hours', 'America/New_York', 'The Boathouse')
  ) e (key, title, start, length, timezone, location)
  on conflict do nothing;

  insert into procjobs_demo.event_attendees (event_id, person_id, remind_before)
  select procjobs.demo_id(a.event), procjobs.demo_id(a.person), a.remind_before
  from (values
    ('screening', 'maya', interval '26 hours'), ('screening', 'tomas', interval '2 hours'), ('screening', 'aiko', null),
    ('party', 'maya', interval '1 day'), ('party', 'liam', interval '3 days')
  ) a (event, person, remind_before)
  on conflict do nothing;

  insert into procjobs_demo.projects (
    id, organization_id, name, contact_id, currency, advance_paid_at, balance_due, balance_paid_at, payment_url
  )
  select procjobs.demo_id(p.key), v_studio, p.name, procjobs.demo_id(p.contact), p.currency, v_now - p.advance,
    p.balance,
    v_now - p.paid, 'https://harbourlane.example/pay/' || p.key
  from (values
    ('northern', 'Northern Lights', 'liam', 'EUR', interval '5 days', 4200.00, null),
    ('tide', 'Low Tide', 'priya', 'USD', interval '1 day', 1800.00, null),
    ('orchard', 'The Orchard', 'liam', 'EUR', interval '60 days', 950.00, interval '12 days')
  ) p (key, name, contact, currency, advance, balance, paid)
  on conflict do nothing;

  insert into procjobs_demo.subscriptions (id, organization_id, plan, is_active, monthly_price, currency, started_at)
  values
    (procjobs.demo_id('plan studio'), v_studio, 'Team', true, 49.00, 'EUR', v_now - interval '400 days'),
    (procjobs.demo_id('plan press'), procjobs.demo_id('press'), 'Solo', true, 12.00, 'EUR', v_now - interval '6 days')
  on conflict do nothing;

  insert into procjobs_demo.calendars (id, organization_id, name, feed_url, timezone, is_active)
  values (procjobs.demo_id('calendar'), v_studio, 'Studio '
    'bookings', 'https://harbourlane.example/bookings.ics', 'Europe/Stockholm', false)
  on conflict do nothing;

  insert into procjobs_demo.calendar_members (calendar_id, person_id)
  values
    (procjobs.demo_id('calendar'), procjobs.demo_id('maya')),
    (procjobs.demo_id('calendar'), procjobs.demo_id('aiko'))
  on conflict do nothing;

  insert into procjobs_demo.activity (organization_id, person_id, kind, happened_at)
  select m.organization_id, m.person_id, (array['login', 'upload', 'comment'])[1 + h % 3],
    v_now - make_interval(hours => h)
  from procjobs_demo.memberships m
  cross join generate_series(1, 30 * 24, 7) h
  where m.organization_id = v_studio
    and not exists (select from procjobs_demo.activity);
end
$$;
comment on function procjobs.seed_demo_business() is
  'Events, projects, subscriptions, a calendar (not fetched: its address leads nowhere) and a month of activity, in '
    'the demo.';

create or replace function procjobs.seed_demo_old_rows()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
begin
  -- Of each kind some that the next clean-up finds, and some that it leaves.
  insert into procjobs_demo.memberships (organization_id, person_id, role, joined_at, removed_at)
  values (procjobs.demo_id('press'), procjobs.demo_id('aiko'), 'member', v_now - interval '200 days', v_now - interval '120 days')
  on conflict do nothing;

  insert into procjobs_demo.sessions (id, person_id, token_hash, created_at, expires_at)
  select procjobs.demo_id('session ' || n), procjobs.demo_id((array['maya', 'tomas', 'aiko'])[1 + n % 3]), sha256(('session ' || n)::bytea),
    v_now - make_interval(days => n), v_now - make_interval(days => n) + interval '14 days'
  from generate_series(1, 40) n
  on conflict do nothing;

  insert into procjobs_demo.email_verification_tokens (id, person_id, token_hash, expires_at)
  select procjobs.demo_id('check ' || n), procjobs.demo_id('liam'), sha256(('check ' || n)::bytea), v_now + make_interval(days => 1 - 2 * n)
  from generate_series(0, 3) n
  on conflict do nothing;

  insert into procjobs_demo.password_reset_tokens (id, person_id, token_hash, expires_at)
  select procjobs.demo_id('reset ' || n), procjobs.demo_id('priya'), sha256(('reset ' || n)::bytea), v_now + make_interval(hours => 1 - 5 * n)
  from generate_series(0, 2) n
  on conflict do nothing;

  insert into procjobs_demo.deliverables (id, project_id, name, status, delivered_at)
  select procjobs.demo_id('deliverable ' || d.name), procjobs.demo_id(d.project), d.name, 'delivered', v_now - d.ago
  from (values
    ('orchard', 'The Orchard, master', interval '400 days'),
    ('orchard', 'The Orchard, stills', interval '390 days'),
    ('northern', 'Trailer, third cut', interval '50 minutes')
  ) d (project, name, ago)
  on conflict do nothing;

  insert into procjobs_demo.invitations (id, organization_id, email, expires_at)
  select procjobs.demo_id('invitation ' || n), procjobs.demo_id('studio'), 'guest' || n || '@harbourlane.example',
    v_now + interval '20 days' - make_interval(days => 30 * n)
  from generate_series(0, 4) n
  on conflict do nothing;

  insert into procjobs_demo.audit_logs (person_id, action, created_at)
  select procjobs.demo_id('tomas'), (array['role changed', 'exported', 'signed in'])[1 + n % 3], v_now - make_interval(hours => 12 * n)
  from generate_series(1, 120) n
  where not exists (select from procjobs_demo.audit_logs);

  insert into procjobs_demo.logs (message, created_at)
  select 'request ' || n || ' took ' || 20 + n * 7 % 90 || ' ms', v_now - make_interval(days => n)
  from generate_series(0, 150) n
  where not exists (select from procjobs_demo.logs);

  insert into procjobs_demo.uploads (id, person_id, update_id, key, created_at)
  select procjobs.demo_id('upload ' || u.key), procjobs.demo_id('maya'), case when u.posted then procjobs.demo_id('lake') end,
    '2031/lake/' || u.key, v_now - u.ago
  from (values
    ('jetty.jpg', true, interval '1 day'), ('ducks.jpg', true, interval '1 day'),
    ('blurred.jpg', false, interval '30 hours'), ('draft.jpg', false, interval '1 hour')
  ) u (key, posted, ago)
  on conflict do nothing;
end
$$;
comment on function procjobs.seed_demo_old_rows() is
  'Sessions, tokens, logs and the like in the demo, old ones too, for the policies of procjobs.table_retention. Once: what was cleaned up does not come back.';

create or replace function procjobs.seed_demo_notifications()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.enqueue_notification_job(
    procjobs.demo_id('ingrid'), procjobs.demo_id('family'), procjobs.demo_id('first-steps'));
  perform procjobs.enqueue_notification_job(
    procjobs.demo_id('tomas'), procjobs.demo_id('launch'), null, 'immediate', 'urgent', 'email',
    '{"subject": "The third cut needs your approval before 18:00",
      "body": "Aiko has finished the third cut of the trailer.\n\nColours are final. Please look at the last eight '
        'seconds, and say yes or no today: the screening is tomorrow.",
      "preview": "Colours are final; eight seconds to look at.",
      "action_label": "Watch the third cut", "action_url": "https://harbourlane.example/updates/trailer"}');
  perform procjobs.enqueue_notification_job(
    procjobs.demo_id('aiko'), procjobs.demo_id('launch'), procjobs.demo_id('score'), 'immediate', 'low');
  perform procjobs.enqueue_notification_job(
    procjobs.demo_id('maya'), null, null, 'reminder', 'normal', 'email',
    '{"subject": "Book the boathouse",
      "body": "You asked to be reminded: the boathouse for the launch party is only held until the end of the '
        'week.\n\nhttps://harbourlane.example/events/party"}', 15);
  perform procjobs.suppress_address('astrid@family.example', 'moved away, said Maya');
end
$$;
comment on function procjobs.seed_demo_notifications() is
  'Mail for the demo''s people: three at once, of different urgency, and one in a quarter of an hour; an address that gets none.';

create or replace function procjobs.seed_demo_digests()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- One is due in the next minute, so that there is something to see.
  perform procjobs.create_digest_schedule(
    procjobs.demo_id('ingrid'), 'daily', procjobs.demo_id('family'), timezone => 'UTC',
    delivery_time => to_char((procjobs.clock() + interval '1 minute') at time zone 'UTC', 'HH24:MI'));
  perform procjobs.create_digest_schedule(procjobs.demo_id('maya'), 'weekly', day_of_week => 7, delivery_time => '18:00');
  perform procjobs.create_digest_schedule(procjobs.demo_id('aiko'), 'monthly', day_of_month => 31, include_content_types => '{photos}');
  perform procjobs.queue_notification_email(
    procjobs.demo_id('tomas'), array[procjobs.demo_id('notice cut'), procjobs.demo_id('notice note')],
    procjobs.clock() + interval '1 minute');
end
$$;
comment on function procjobs.seed_demo_digests() is
  'Digests for the demo''s people, one due in the next minute, and notices that are mailed then.';

create or replace function procjobs.seed_demo_invitations()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Each belongs to the other organization only, and joins with one click. The rows are all it takes: the next
  -- procjobs.process_pending_invites sends the mail.
  insert into procjobs.pending_invites (organization_id, email, role, invited_by, created_at, updated_at, expires_at)
  select procjobs.demo_id(i.organization), i.person || '@harbourlane.example', i.role, procjobs.demo_id(i.inviter), c.now, c.now, c.now + interval '30 days'
  from (values ('studio', 'liam', 'member', 'maya'), ('press', 'priya', 'admin', 'liam')) i (organization, person, role, inviter)
  cross join procjobs.clock() c (now)
  on conflict do nothing;
end
$$;
comment on function procjobs.seed_demo_invitations() is
  'Two invitations, for procjobs.invites: within two minutes their links are in the mailbox. The table procjobs_demo.invitations is another, '
  'to show how an application''s own old rows are cleaned up.';

create or replace function procjobs.seed_demo()
returns table (recipient_id uuid, group_id uuid, organization_id uuid, user_id uuid, admin_id uuid)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_first boolean;
begin
  -- The tables may be left from before the application brought its host.sql: then nobody reads them any more.
  if not procjobs.demo_is_bound() then
    raise exception 'there are no demo tables to fill'
      using errcode = 'PJ012',
            detail = 'procjobs.host_recipients does not read procjobs_demo: this database has a host.sql of its own',
            hint = 'Start with procjobs up --no-demo.';
  end if;

  v_first := procjobs.seed_demo_people();
  perform procjobs.seed_demo_updates();
  perform procjobs.seed_demo_business();
  if v_first then
    perform procjobs.seed_demo_old_rows();
    perform procjobs.seed_demo_notifications();
    perform procjobs.seed_demo_digests();
    perform procjobs.seed_demo_invitations();
  end if;
  return query
    select procjobs.demo_id('ingrid'), procjobs.demo_id('family'), procjobs.demo_id('studio'), procjobs.demo_id('maya'),
      procjobs.demo_id('tomas');
end
$$;
comment on function procjobs.seed_demo() is
  'Fills the demo tables, and nothing that is there already. Returns what up.json tells: a recipient and a group, '
  'their organization, a user (the recipient''s owner) and an admin.';
