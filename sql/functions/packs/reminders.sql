-- Reminders of both kinds: what they share, whether one is still true when it is sent, and looking at them.
-- Owns:        nothing; forgets rows of procjobs.payment_reminders and procjobs.event_reminders.
-- Lock order:  event_reminders, then payment_reminders.

create or replace function procjobs.shift_local(p_at timestamptz, p_by interval, p_zone text)
returns timestamptz
language sql
stable
parallel safe
as $$
  select ((p_at at time zone p_zone) + date_trunc('day', p_by)) at time zone p_zone + (p_by - date_trunc('day', p_by))
$$;
comment on function procjobs.shift_local(timestamptz, interval, text) is
  'A time moved as PostgreSQL moves one, months and days by the calendar, hours by the clock, in that zone instead of the session''s. '
  'Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.reminder_obstacle(p_job procjobs.notification_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Letters that somebody requested by hand have no row, and nothing is asked.
  if p_job.template = 'payment_reminder' and exists (select from procjobs.payment_reminders r where r.notification_id = p_job.id) then
    return (
      select case
          when p.id is null then 'the project is not there any more'
          when p.balance_paid_at is not null or not coalesce(p.balance_due > 0, false) then 'the balance was paid meanwhile'
          when p.advance_paid_at is distinct from r.advance_paid_at then 'the advance was taken back, or paid at another time'
          when p.contact_id is distinct from r.contact_id then 'the project has another contact now'
        end
      from procjobs.payment_reminders r
      left join procjobs.host_projects p on p.id = r.project_id
      where r.notification_id = p_job.id
    );
  elsif p_job.template = 'event_reminder' and exists (select from procjobs.event_reminders r where r.notification_id = p_job.id) then
    return (
      select case
          when e.id is null or e.is_cancelled then 'the event was cancelled'
          when e.starts_at <> r.starts_at then 'the event was moved'
          when e.starts_at <= procjobs.clock() then 'the event has begun'
          when a.remind_before is null then 'the person does not attend any more, or wants no reminder'
        end
      from procjobs.event_reminders r
      left join procjobs.host_events e on e.id = r.event_id
      left join procjobs.host_event_attendees a on a.event_id = r.event_id and a.person_id = r.person_id
      where r.notification_id = p_job.id
    );
  end if;
  return null;
end
$$;
comment on function procjobs.reminder_obstacle(procjobs.notification_jobs) is
  'Why a reminder that is about to be sent is not true any more; null if it is, and for all other mails.';

create or replace function procjobs.reminded_of(p_projects uuid[], p_events uuid[])
returns table (id uuid, name text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if to_regclass('procjobs.host_projects') is not null then
    return query select p.id, p.name from procjobs.host_projects p where p.id = any (p_projects);
  end if;
  if to_regclass('procjobs.host_events') is not null then
    return query select e.id, e.title from procjobs.host_events e where e.id = any (p_events);
  end if;
end
$$;
comment on function procjobs.reminded_of(uuid[], uuid[]) is
  'Names of projects and titles of events, as far as the application has any.';

create or replace function procjobs.list_reminders(
  p_kind text default null,
  p_about uuid default null,
  p_person uuid default null,
  p_limit integer default 50,
  p_offset integer default 0
)
returns table (
  kind text, id bigint, about_id uuid, about text, person_id uuid, person_name text, step text, local_day date, amount numeric, currency text,
  starts_at timestamptz, created_at timestamptz, outcome text, reason text, notification_id uuid, mail_status text, mail_error text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform procjobs.require_host('host_people');
  if p_kind not in ('payment', 'event') then
    raise exception 'there are no reminders of the kind %', quote_literal(p_kind)
      using errcode = 'PJ009', detail = 'nothing would be listed, whatever there is', hint = 'One of payment, event.';
  end if;
  return query
  with r as materialized (
    select l.*
    from procjobs.reminders l
    where (p_kind is null or l.kind = p_kind)
      and (p_about is null or l.about_id = p_about)
      and (p_person is null or l.person_id = p_person)
    order by l.created_at desc, l.kind, l.id desc
    limit p_limit offset p_offset
  )
  select
    r.kind, r.id, r.about_id, a.name, r.person_id, c.name, r.step, r.local_day, r.amount,
    r.currency, r.starts_at, r.created_at, r.outcome, r.reason, r.notification_id, r.mail_status, r.mail_error
  from r
  left join procjobs.reminded_of(
    array(select o.about_id from r o where o.kind = 'payment'), array(select o.about_id from r o where o.kind = 'event')
  ) a on a.id = r.about_id
  left join procjobs.host_people c on c.id = r.person_id
  order by r.created_at desc, r.kind, r.id desc;
end
$$;
comment on function procjobs.list_reminders(text, uuid, uuid, integer, integer) is
  'Reminders that were due, newest first, with the names of what they are about and whom they are for. Definer: the reader role has no rights on tables.';

create or replace function procjobs.forget_reminders(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_events integer;
  v_payments integer;
begin
  delete from procjobs.event_reminders r
  where r.id in (
    select o.id from procjobs.event_reminders o where o.starts_at < v_now - interval '400 days' order by o.starts_at limit p_max_rows
  );
  get diagnostics v_events = row_count;
  -- The last one of a project says which step was sent: it stays.
  delete from procjobs.payment_reminders r
  where r.id in (
    select o.id
    from procjobs.payment_reminders o
    where o.created_at < v_now - interval '400 days'
      and exists (select from procjobs.payment_reminders n where n.project_id = o.project_id and n.outcome = 'created' and n.id > o.id)
    order by o.created_at
    limit p_max_rows
  );
  get diagnostics v_payments = row_count;
  return v_events + v_payments;
end
$$;
comment on function procjobs.forget_reminders(integer) is
  'Deletes what the ledgers of reminders say of longer than 400 days ago, in bounded batches. A chore of upkeep. Returns how many.';
