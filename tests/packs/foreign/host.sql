-- The rowing club bound to procjobs. Members carry a uuid of their own; of everything else the number becomes one, by an expression
-- that has an index. What the club marks as gone is not in the views.

grant usage on schema club to procjobs_owner;
grant select on all tables in schema club to procjobs_owner;
grant insert, update on club.seat to procjobs_owner;  -- host_add_member
grant update on club.board_reader to procjobs_owner;  -- host_mute

create or replace view procjobs.host_people as
select m.public_id as id, (m.given_name || ' ' || m.surname)::text as name, m.mail::text as email, m.mobile::text as phone,
  coalesce(m.region, 'Europe/Zurich')::text as timezone, m.speaks_for_club as is_admin, false as wants_reports,
  m.joined at time zone 'Europe/Zurich' as created_at, m.seen at time zone 'Europe/Zurich' as last_active_at
from club.member m
where m.left_on is null;

create or replace view procjobs.host_recipients as
select p.id, p.id as owner_id, p.name, 'self'::text as relationship, p.email, p.phone, p.timezone, null::text as slack, null::text as webhook_url
from procjobs.host_people p;

create or replace view procjobs.host_organizations as
select md5('crew:' || c.crew_no::text)::uuid as id, c.called::text as name, 'Europe/Zurich'::text as timezone, null::text as logo_url
from club.crew c
where c.disbanded_on is null;

create or replace view procjobs.host_memberships as
select md5('crew:' || s.crew_no::text)::uuid as organization_id, m.public_id as person_id, s.duty::text as role,
  s.since at time zone 'Europe/Zurich' as joined_at
from club.seat s
join club.member m on m.member_no = s.member_no
where s.left_on is null
  and m.left_on is null;

create or replace view procjobs.host_groups as
select md5('board:' || b.board_no::text)::uuid as id, md5('crew:' || b.crew_no::text)::uuid as organization_id, b.caption::text as name
from club.board b;

create or replace view procjobs.host_group_recipients as
select md5('board:' || r.board_no::text)::uuid as group_id, m.public_id as recipient_id,
  r.quiet_until at time zone 'Europe/Zurich' as muted_until
from club.board_reader r
join club.member m on m.member_no = r.member_no
where m.left_on is null;

create or replace view procjobs.host_updates as
select md5('note:' || n.note_no::text)::uuid as id, md5('board:' || n.board_no::text)::uuid as group_id,
  (m.given_name || ' ' || m.surname)::text as author_name,
  case n.kind when 'picture' then 'photos' when 'result' then 'milestones' else 'text' end as content_type,
  n.headline::text as title, n.words::text as body, 'https://club.example/note/' || n.note_no as url, null::text as image_url,
  n.pinned_at at time zone 'Europe/Zurich' as created_at
from club.note n
join club.member m on m.member_no = n.by_member
where not n.withdrawn;

create or replace view procjobs.host_update_reads as
select md5('note:' || s.note_no::text)::uuid as update_id, m.public_id as recipient_id, s.at at time zone 'Europe/Zurich' as read_at
from club.note_seen s
join club.member m on m.member_no = s.member_no;

create or replace view procjobs.host_events as
select md5('regatta:' || r.regatta_no::text)::uuid as id, md5('crew:' || r.crew_no::text)::uuid as organization_id, r.called::text as title,
  r.begins at time zone w.region as starts_at, (r.begins + make_interval(mins => r.minutes)) at time zone w.region as ends_at,
  w.region::text as timezone, w.called::text as location, 'https://club.example/regatta/' || r.regatta_no as url,
  r.called_off_on is not null as is_cancelled
from club.regatta r
join club.water w on w.water_no = r.water_no;

create or replace view procjobs.host_event_attendees as
select md5('regatta:' || e.regatta_no::text)::uuid as event_id, m.public_id as person_id, make_interval(hours => e.warn_hours) as remind_before
from club.entry e
join club.member m on m.member_no = e.member_no
where not e.scratched
  and m.left_on is null;

create or replace view procjobs.host_projects as
select md5('order:' || o.order_no::text)::uuid as id, md5('crew:' || o.crew_no::text)::uuid as organization_id, o.boat::text as name,
  m.public_id as contact_id, o.ccy::text as currency, o.deposit_on at time zone 'Europe/Zurich' as advance_paid_at,
  (o.rest_centimes / 100.0)::numeric as balance_due, o.rest_on at time zone 'Europe/Zurich' as balance_paid_at,
  null::text as payment_url
from club.boat_order o
left join club.member m on m.member_no = o.buyer_no
where not o.struck_off;

create or replace function procjobs.host_find_person(p_email text)
returns uuid
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select m.public_id from club.member m where lower(m.mail) = lower(btrim(p_email)) and m.left_on is null
$$;

create or replace function procjobs.host_invitable_roles(p_inviter uuid, p_organization uuid)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((
    select case s.duty when 'trains' then array['steers', 'trains', 'rows'] when 'steers' then array['rows'] else array[]::text[] end
    from club.seat s
    join club.member m on m.member_no = s.member_no
    join club.crew c on c.crew_no = s.crew_no
    where m.public_id = p_inviter
      and m.left_on is null
      and s.left_on is null
      and c.disbanded_on is null
      and md5('crew:' || c.crew_no::text)::uuid = p_organization), array[]::text[])
$$;

create or replace function procjobs.host_add_member(p_organization uuid, p_person uuid, p_role text)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  with added as (
    insert into club.seat as s (crew_no, member_no, duty, since)
    select c.crew_no, m.member_no, p_role::club.duty, now() at time zone 'Europe/Zurich'
    from club.crew c
    cross join club.member m
    where md5('crew:' || c.crew_no::text)::uuid = p_organization
      and m.public_id = p_person
    on conflict (crew_no, member_no) do update
    set duty = excluded.duty, since = excluded.since, left_on = null
    where s.left_on is not null  -- who left takes the seat again
    returning 1)
  select exists (select from added)
$$;

create or replace function procjobs.host_register_url(p_email text, p_continue text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'https://club.example/join?mail=' || procjobs.url_encode(p_email) || '&then=' || procjobs.url_encode(p_continue)
$$;

create or replace function procjobs.host_mute(p_recipient uuid, p_group uuid, p_until timestamptz)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  with changed as (
    update club.board_reader r
    set quiet_until = p_until at time zone 'Europe/Zurich'
    from club.member m
    where m.member_no = r.member_no
      and m.public_id = p_recipient
      and md5('board:' || r.board_no::text)::uuid = p_group
      and r.quiet_until is distinct from p_until at time zone 'Europe/Zurich'
    returning 1)
  select exists (select from changed)
$$;

select procjobs.check_host_bindings();
