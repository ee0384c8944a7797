-- Reminders of balances that are unpaid.
-- Owns:        procjobs.payment_reminders.
-- Lock order:  the ledger, by project; then procrastinate_jobs, then notification_jobs.
-- What is due is found by one query. A row of the ledger stands before its mail is requested, in one transaction: of two that look
-- at the same time the second waits for the first one's keys and then passes over them.

create or replace function procjobs.unpaid_projects(p_before timestamptz)
returns table (id uuid, advance_paid_at timestamptz, balance_due numeric, currency text, contact_id uuid, zone text, obstacle text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
begin
  return query
  with unpaid as materialized (
    select p.id, p.advance_paid_at, p.balance_due, p.currency, p.contact_id, c.timezone as of_contact, o.timezone as of_organization, case
        when p.contact_id is null then 'the project has no contact'
        when c.id is null then 'the contact is not there any more'
        when not procjobs.is_reachable(c.email) then 'the contact has no e-mail address'
      end as obstacle
    from procjobs.host_projects p
    left join procjobs.host_people c on c.id = p.contact_id
    left join procjobs.host_organizations o on o.id = p.organization_id
    where p.balance_paid_at is null
      and p.balance_due > 0
      and p.balance_due < 'infinity'  -- nor NaN, which is greater than every number
      and p.advance_paid_at <= p_before
      and isfinite(p.advance_paid_at)
  ),
  zone as materialized (
    select z.name, procjobs.zone_or_null(z.name) as known
    from (select u.of_contact from unpaid u union select u.of_organization from unpaid u) z (name)
  )
  select u.id, u.advance_paid_at, u.balance_due, u.currency, u.contact_id, coalesce(c.known, o.known, 'UTC'), u.obstacle
  from unpaid u
  left join zone c on c.name = u.of_contact
  left join zone o on o.name = u.of_organization;
end
$$;
comment on function procjobs.unpaid_projects(timestamptz) is
  'Projects whose advance was paid before then and whose balance is unpaid: in whose zone days count, and why the contact cannot be reached, if so.';

create or replace function procjobs.due_payment_reminders(p_now timestamptz)
returns setof procjobs.payment_reminders
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
  return query
  with step as materialized (
    select s.name, s.after, s.every from procjobs.reminder_steps s where s.kind = 'payment' and s.enabled
  ),
  unpaid as materialized (
    select u.* from procjobs.unpaid_projects(p_now - (select min(s.after) from step s) + interval '1 day') u  -- before zones are known
  ),
  due as (
    select u.*, s.name as step, (p_now at time zone u.zone)::date as today, case
        when s.every is null then 0
        else floor(extract(epoch from (p_now at time zone u.zone) - (s.at at time zone u.zone)) / extract(epoch from s.every))::integer
      end as occurrence, case when u.obstacle is null then 'created' else 'unreachable' end as outcome
    from unpaid u
    cross join lateral (
      select t.name, t.every, procjobs.shift_local(u.advance_paid_at, t.after, u.zone) as at
      from step t
      where procjobs.shift_local(u.advance_paid_at, t.after, u.zone) <= p_now
      order by t.after desc, t.name
      limit 1
    ) s
  )
  select
    null::bigint, d.id, d.step, d.occurrence, d.today, d.zone, d.advance_paid_at, d.contact_id, d.balance_due, d.currency, p_now, d.outcome,
    d.obstacle, case d.outcome when 'created' then gen_random_uuid() end
  from due d
  where not exists (
      select from procjobs.payment_reminders r where r.project_id = d.id and r.local_day = d.today and r.outcome = d.outcome
    )
    and not exists (
      select
      from procjobs.payment_reminders r
      where (r.project_id, r.advance_paid_at, r.step, r.occurrence) = (d.id, d.advance_paid_at, d.step, d.occurrence)
        and r.outcome = 'created'
    )
  order by d.id;
end
$$;
comment on function procjobs.due_payment_reminders(timestamptz) is
  'Rows that the ledger of payments is to get, with the id of the mail to request: of each project whose balance is unpaid the latest step that has come, if it was not sent and nothing '
  'was sent that day. Steps count from the advance by local time.';

drop function if exists procjobs.payment_letters(bigint[]);
create or replace function procjobs.payment_letters(p_rows procjobs.payment_reminders[])
returns table (id uuid, person_id uuid, content jsonb, urgency text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select r.notification_id, r.contact_id, jsonb_strip_nulls(jsonb_build_object(
      'heading', s.heading, 'words', s.words, 'project', left(coalesce(p.name, 'the project'), 200), 'organization', left(o.name, 200),
      'amount', r.amount::text, 'currency', coalesce(r.currency, ''), 'paid_on', d.paid_on, 'days', r.local_day - d.paid_on,
      'payment_url', p.payment_url)), s.urgency
  from unnest(p_rows) r
  cross join lateral (select (r.advance_paid_at at time zone r.timezone)::date as paid_on) d
  join procjobs.reminder_steps s on s.kind = 'payment' and s.name = r.step
  join procjobs.host_projects p on p.id = r.project_id
  left join procjobs.host_organizations o on o.id = p.organization_id;
end
$$;
comment on function procjobs.payment_letters(procjobs.payment_reminders[]) is 'What the mails of these rows of the ledger of payments say.';

create or replace function procjobs.create_payment_reminders()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_rows procjobs.payment_reminders[];
begin
  if to_regclass('procjobs.host_projects') is null then
    return 0;  -- an application without projects has nobody to remind
  end if;
  perform procjobs.require_host('host_projects', 'host_people', 'host_organizations');
  with noted as (
    insert into procjobs.payment_reminders as r overriding user value
    select d.* from procjobs.due_payment_reminders(procjobs.clock()) d
    on conflict do nothing
    returning r as ledger_row
  )
  select array_agg(n.ledger_row) into v_rows from noted n where (n.ledger_row).outcome = 'created';
  return (
    select procjobs.request_letters_of(
      'payment_reminder', array_agg(l.id), array_agg(l.content), p_persons => array_agg(l.person_id), p_urgencies => array_agg(l.urgency))
    from procjobs.payment_letters(v_rows) l
  );
end
$$;
comment on function procjobs.create_payment_reminders() is
  'Requests the reminders of unpaid balances that are due, each once however many call it at the same time, and notes those whom nobody can reach. '
  'Returns how many mails. Called daily by the schedule of this name. Definer: the worker and admin roles have no rights on tables.';
