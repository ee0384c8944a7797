-- Daily reports: who asked for them, and one mail for each of them and each local day.
-- Owns:        procjobs.report_subscriptions, procjobs.daily_reports.
-- Lock order:  the ledger (daily_reports); then procrastinate_jobs, then notification_jobs.
-- As with reminders, a row of the ledger stands before its mail is requested, in one transaction: of two that look at the same
-- time the second waits for the first one's keys and then passes over them.

create or replace function procjobs.subscribe_report(
  person uuid default null,
  address text default null,
  address_name text default null,
  timezone text default null,
  delivery_time time default null
)
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  a_address constant text := btrim(subscribe_report.address);
  v_addressee constant text := coalesce(subscribe_report.person::text, lower(a_address));
  v_row procjobs.report_subscriptions;
begin
  perform procjobs.require_host_of_mail();
  perform procjobs.check_letter(
    'daily_report', '{"for_day": "", "figures": []}', null, subscribe_report.person, a_address, 'normal', null);
  insert into procjobs.report_subscriptions as s (person_id, address, address_name, timezone, delivery_time, created_at, set_at, set_by)
  values (
    subscribe_report.person, a_address, case when a_address is not null then subscribe_report.address_name end,
    case when subscribe_report.timezone is not null then procjobs.cron_zone(subscribe_report.timezone) end,
    coalesce(subscribe_report.delivery_time, time '07:00'),
    procjobs.clock(), procjobs.clock(), session_user
  )
  on conflict (addressee) do update
  set address_name = coalesce(excluded.address_name, s.address_name),
      timezone = coalesce(excluded.timezone, s.timezone),
      delivery_time = coalesce(subscribe_report.delivery_time, s.delivery_time),
      set_at = excluded.set_at,
      set_by = excluded.set_by
  returning s.* into v_row;
  delete from procjobs.unsubscriptions u where u.addressee = v_addressee and u.kind = 'daily_report';
  return procjobs.next_digest_at('daily', v_row.delivery_time, timezone => procjobs.report_zone(v_row));
end
$$;
comment on function procjobs.subscribe_report(uuid, text, text, text, time) is
  'Sends the daily report to a person or a bare address, each day not before delivery_time (07:00) there: timezone, else the person''s, else UTC. '
  'What is null stays as it was; an unsubscription is taken back. Returns when the next one is due. Definer: the admin role has no rights on tables.';

create or replace function procjobs.unsubscribe_report(person uuid default null, address text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from procjobs.report_subscriptions s
  where s.addressee = coalesce(unsubscribe_report.person::text, lower(btrim(unsubscribe_report.address)));
  return found;
end
$$;
comment on function procjobs.unsubscribe_report(uuid, text) is
  'Ends the daily report of a person or address. False if there was none. Definer: the admin role has no rights on tables.';

create or replace function procjobs.report_zone(p_row procjobs.report_subscriptions)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_row.timezone is not null or p_row.person_id is null or to_regclass('procjobs.host_people') is null then
    return procjobs.known_zone(p_row.timezone);
  end if;
  return procjobs.known_zone((select p.timezone from procjobs.host_people p where p.id = p_row.person_id));
end
$$;
comment on function procjobs.report_zone(procjobs.report_subscriptions) is 'Where days of a subscriber begin and end.';

create or replace function procjobs.report_obstacle(p_row procjobs.report_subscriptions)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_row.person_id is null then
    return null;
  elsif to_regclass('procjobs.host_people') is null then
    return 'there are no people any more: procjobs.host_people';
  end if;
  return case
    when not exists (select from procjobs.host_people p where p.id = p_row.person_id) then 'the person is not there any more'
    when not exists (select from procjobs.host_people p where p.id = p_row.person_id and procjobs.is_reachable(p.email)) then
      'the person has no e-mail address'
  end;
end
$$;
comment on function procjobs.report_obstacle(procjobs.report_subscriptions) is 'Why a report cannot be mailed to a subscriber; null if it can.';

create or replace function procjobs.due_daily_reports(p_now timestamptz)
returns setof procjobs.daily_reports
language sql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  -- For who missed days because nobody was there, only yesterday's.
  with subscriber as materialized (
    select s.*, procjobs.report_zone(s) as zone, procjobs.report_obstacle(s) as obstacle
    from procjobs.report_subscriptions s
    where not procjobs.is_unsubscribed('kind daily_report ' || s.addressee)
  ),
  due as (
    select u.*, d.today
    from subscriber u
    cross join lateral (select (p_now at time zone u.zone)::date as today) d
    where not exists (select from procjobs.daily_reports r where r.addressee = u.addressee and r.local_day >= d.today - 1)
      and procjobs.next_digest_at(
        'daily', u.delivery_time, timezone => u.zone, after => procjobs.day_begin(d.today, u.zone) - interval '1 microsecond'
      ) between u.created_at and p_now
  )
  select
    null::bigint, d.addressee, d.today - 1, d.zone, p_now, case when d.obstacle is null then 'created' else 'unreachable' end, d.obstacle,
    case when d.obstacle is null then gen_random_uuid() end
  from due d
  order by d.addressee
$$;
comment on function procjobs.due_daily_reports(timestamptz) is
  'Rows that the ledger of daily reports is to get, with the id of the mail to request: of each subscriber whose local delivery time has come today, '
  'and who has no report of yesterday.';

create or replace function procjobs.create_daily_reports()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_rows procjobs.daily_reports[];
begin
  if not exists (select from procjobs.report_subscriptions) then
    return 0;
  end if;
  perform procjobs.require_host_of_mail();
  with noted as (
    insert into procjobs.daily_reports as r overriding user value
    select d.* from procjobs.due_daily_reports(procjobs.clock()) d
    on conflict (addressee, local_day) do nothing
    returning r as ledger_row
  )
  select array_agg(n.ledger_row) into v_rows from noted n where (n.ledger_row).outcome = 'created';
  return coalesce((
    with report as materialized (
      select r.local_day, r.timezone, procjobs.report_content(r.local_day, r.timezone) as content
      from unnest(v_rows) r
      group by r.local_day, r.timezone
    )
    select procjobs.request_letters(
      array_agg(r.notification_id), array_agg('daily_report'::text), array_agg(c.content), array_agg(null::uuid), array_agg(s.person_id),
      array_agg(s.address), array_agg(s.address_name), array_agg('daily_report'::text), array_agg('low'::text),
      array_agg(null::timestamptz), array_agg(null::uuid))
    from unnest(v_rows) r
    join procjobs.report_subscriptions s on s.addressee = r.addressee
    join report c on c.local_day = r.local_day and c.timezone = r.timezone
    having count(*) > 0
  ), 0);
end
$$;
comment on function procjobs.create_daily_reports() is
  'Requests the daily reports that are due, each once however many call it at the same time, and notes those whom nobody can reach. Returns how many mails. '
  'Called every minute by the schedule of this name. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.preview_report(for_day date default null, timezone text default 'UTC')
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_zone constant text := procjobs.cron_zone(coalesce(preview_report.timezone, 'UTC'));
begin
  return procjobs.report_content(coalesce(preview_report.for_day, (procjobs.clock() at time zone v_zone)::date - 1), v_zone);
end
$$;
comment on function procjobs.preview_report(date, text) is
  'What the daily report of a local day (yesterday) says, without sending it. Definer: the admin role has no rights on tables.';

create or replace function procjobs.generate_report(
  person uuid default null,
  address text default null,
  for_day date default null,
  timezone text default 'UTC'
)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return procjobs.enqueue_letter(
    'daily_report', procjobs.preview_report(generate_report.for_day, generate_report.timezone), person => generate_report.person,
    address => generate_report.address);
end
$$;
comment on function procjobs.generate_report(uuid, text, date, text) is
  'Mails the report of a local day (yesterday) to somebody now, whoever got it before. The task GENERATE_REPORT. Returns the notification. '
  'Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.forget_daily_reports(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.daily_reports r
  where r.id in (
    select o.id from procjobs.daily_reports o where o.created_at < procjobs.clock() - interval '400 days' order by o.created_at limit p_max_rows
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_daily_reports(integer) is
  'Deletes what the ledger of daily reports says of longer than 400 days ago, in bounded batches. A chore of upkeep. Returns how many.';

create or replace function procjobs.declare_reports()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.register_sql_task(
    t.name, t.routine, queue => 'reports', priority => 5, max_attempts => t.runs, backoff_base => '1 minute', timeout => '10 minutes')
  from (values
    ('procjobs.create_daily_reports', 'procjobs.create_daily_reports', 1),
    ('GENERATE_REPORT', 'procjobs.generate_report', 3)
  ) t (name, routine, runs);
  return (
    select count(*)
    from procjobs.declare_schedules('pack', '[
      {"name": "create_daily_reports", "task": "procjobs.create_daily_reports", "cron": "* * * * *", "group": "daily_reports",
        "description": "Daily reports to who asked for them"}
    ]') d
    where d.changed
  );
end
$$;
comment on function procjobs.declare_reports() is
  'Registers the SQL tasks of reports and makes their schedule. migrate calls it. Returns how many schedules are new or changed.';
