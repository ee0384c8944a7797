-- Reminders of events that come.
-- Owns:        procjobs.event_reminders.
-- Lock order:  the ledger, by event and person; then procrastinate_jobs, then notification_jobs.
-- As with payments: one query, and a row of the ledger before its mail.

create or replace function procjobs.coming_events(p_now timestamptz)
returns table (id uuid, starts_at timestamptz, organization_id uuid, zone text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
begin
  return query
  with coming as materialized (
    select e.id, e.starts_at, e.organization_id, e.timezone
    from procjobs.host_events e
    where e.starts_at > p_now
      and isfinite(e.starts_at)
      and e.is_cancelled is not true
  ),
  zone as materialized (
    select z.name, procjobs.known_zone(z.name) as known from (select distinct c.timezone from coming c) z (name)
  )
  select c.id, c.starts_at, c.organization_id, z.known
  from coming c
  join zone z on z.name is not distinct from c.timezone;
end
$$;
comment on function procjobs.coming_events(timestamptz) is
  'Events that have not begun and are not cancelled, and the zone of the place; UTC where that is not known.';

create or replace function procjobs.due_event_reminders(p_now timestamptz)
returns setof procjobs.event_reminders
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
  return query
  with step as materialized (
    select s.name, s.before from procjobs.reminder_steps s where s.kind = 'event' and s.enabled
  ),
  coming as materialized (
    select c.* from procjobs.coming_events(p_now) c
  ),
  due as materialized (
    select c.id, c.starts_at, c.organization_id, a.person_id, s.name as step
    from coming c
    join procjobs.host_event_attendees a on a.event_id = c.id and a.remind_before is not null
      -- Roughly, before calendars and zones are looked at: most starts are far away.
      and c.starts_at - p_now <= greatest(a.remind_before, (select max(t.before) from step t)) * 1.1 + interval '2 days'
    cross join lateral (
      select t.name
      from step t
      where procjobs.shift_local(c.starts_at, -coalesce(t.before, a.remind_before), c.zone) <= p_now
      order by coalesce(t.before, a.remind_before), t.name
      limit 1
    ) s
  ),
  left_over as materialized (
    select d.*
    from due d
    where not exists (
      select
      from procjobs.event_reminders r
      where (r.event_id, r.person_id, r.starts_at, r.step) = (d.id, d.person_id, d.starts_at, d.step)
        and r.outcome = 'created'
    )
  ),
  known as (
    select l.*, p.id is not null as there, procjobs.known_zone(p.timezone, o.timezone) as zone,
      case when procjobs.is_reachable(p.email) then 'created' else 'unreachable' end as outcome
    from left_over l
    left join procjobs.host_people p on p.id = l.person_id
    left join procjobs.host_organizations o on o.id = l.organization_id
  )
  select
    null::bigint, k.id, k.person_id, k.step, k.starts_at, (p_now at time zone k.zone)::date, k.zone, p_now, k.outcome, case
      when k.outcome = 'created' then null
      when not k.there then 'the person is not there any more'
      else 'the person has no e-mail address'
    end, case k.outcome when 'created' then gen_random_uuid() end
  from known k
  where k.outcome = 'created' or not exists (
    select
    from procjobs.event_reminders r
    where (r.event_id, r.person_id, r.starts_at, r.step, r.outcome) = (k.id, k.person_id, k.starts_at, k.step, k.outcome)
  )
  order by k.id, k.person_id;
end
$$;
comment on function procjobs.due_event_reminders(timestamptz) is
  'Rows that the ledger of events is to get, with the id of the mail to request: of each person at an event that has not begun the latest step that has come, if it was not sent for this '
  'start. Who wants no reminder (remind_before is null) gets none. Days count by the clocks of the place.';

drop function if exists procjobs.event_letters(bigint[]);
create or replace function procjobs.event_letters(p_rows procjobs.event_reminders[])
returns table (id uuid, person_id uuid, content jsonb, urgency text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select r.notification_id, r.person_id, jsonb_strip_nulls(jsonb_build_object(
      'heading', s.heading, 'words', s.words, 'title', left(coalesce(e.title, 'An event'), 200), 'organization', left(o.name, 200), 'starts_at', r.starts_at,
      'ends_at', e.ends_at, 'place_timezone', procjobs.known_zone(e.timezone), 'location', left(e.location, 500),
      'url', e.url)), s.urgency
  from unnest(p_rows) r
  join procjobs.reminder_steps s on s.kind = 'event' and s.name = r.step
  join procjobs.host_events e on e.id = r.event_id
  left join procjobs.host_organizations o on o.id = e.organization_id;
end
$$;
comment on function procjobs.event_letters(procjobs.event_reminders[]) is 'What the mails of these rows of the ledger of events say.';

create or replace function procjobs.create_event_reminders()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_rows procjobs.event_reminders[];
begin
  if to_regclass('procjobs.host_events') is null then
    return 0;  -- an application without events has nobody to remind
  end if;
  perform procjobs.require_host('host_events', 'host_event_attendees', 'host_people', 'host_organizations');
  with noted as (
    insert into procjobs.event_reminders as r overriding user value
    select d.* from procjobs.due_event_reminders(procjobs.clock()) d
    on conflict do nothing
    returning r as ledger_row
  )
  select array_agg(n.ledger_row) into v_rows from noted n where (n.ledger_row).outcome = 'created';
  return (
    select procjobs.request_letters_of(
      'event_reminder', array_agg(l.id), array_agg(l.content), p_persons => array_agg(l.person_id), p_urgencies => array_agg(l.urgency))
    from procjobs.event_letters(v_rows) l
  );
end
$$;
comment on function procjobs.create_event_reminders() is
  'Requests the reminders of events that are due, each once however many call it at the same time, and notes those whom nobody can reach. '
  'Returns how many mails. Called every minute by the schedule of this name. Definer: the worker and admin roles have no rights on tables.';
