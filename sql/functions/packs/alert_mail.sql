-- Alerts to operators: one message to each that lists what opened and what is over.
-- Owns:        procjobs.alert_recipients, procjobs.alert_letters.
-- Lock order:  alert_recipients by id, skipping locked ones; then procrastinate_jobs, then notification_jobs, then alert_letters.
-- Alerts are opened one by one, in whatever transaction finds them. Telling is a chore of upkeep, after those that watch, so that
-- many at once are one message. Who was told of what are rows under a unique key, written with the message.

create or replace function procjobs.alert_kinds()
returns table (kind text, level text, words text)
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select v.kind, v.level, v.words
  from (values
    ('backlog', 'warn', 'Many jobs wait'),
    ('breaker_open', 'bad', 'A breaker is open'),
    ('cleanup_idle', 'warn', 'A clean-up finds nothing'),
    ('missed_slot', 'warn', 'A schedule was missed'),
    ('no_clock', 'bad', 'Nobody fires schedules'),
    ('notifications_failed', 'bad', 'Notifications fail'),
    ('process_down', 'bad', 'A process is down'),
    ('schedule_failing', 'warn', 'A schedule fails')
  ) v (kind, level, words)
$$;
comment on function procjobs.alert_kinds() is 'The kinds of alerts that there are: bad or warn, and in words for people.';

create or replace function procjobs.check_alert_recipient(p_address text, p_method text, p_kinds text[], p_pause interval)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fault text;
begin
  v_fault := case
    when p_method is null or p_method not in ('email', 'slack', 'webhook') then
      format('method %s is not email, slack or webhook', coalesce(quote_literal(p_method), 'null'))
    when procjobs.address_problem(p_method, p_address) is not null then
      'the recipient ' || procjobs.address_problem(p_method, p_address)
    when p_method = 'email' then procjobs.mail_address_problem(p_address)
  end;
  v_fault := coalesce(v_fault, (
    select format('kind %s is not known', coalesce(quote_literal(k), 'null'))
    from unnest(p_kinds) k
    where k is null or k not in (select a.kind from procjobs.alert_kinds() a)
    order by k
    limit 1
  ));
  if v_fault is null and p_pause < interval '0' then
    v_fault := format('pause %s is negative', p_pause);
  end if;
  if v_fault is not null then
    raise exception 'nobody can be told of alerts there: %', v_fault
      using errcode = 'PJ009',
            detail = format('kinds: %s', (select string_agg(a.kind, ', ' order by a.kind) from procjobs.alert_kinds() a)),
            hint = 'select procjobs.set_alert_recipient(''ops@example.com''); or: set_alert_recipient(''#ops'', ''slack'', kinds => array[''breaker_open'']);';
  end if;
end
$$;
comment on function procjobs.check_alert_recipient(text, text, text[], interval) is 'Raises PJ009 for a recipient of alerts that cannot be.';

create or replace function procjobs.set_alert_recipient(
  address text,
  method text default 'email',
  name text default null,
  kinds text[] default null,
  pause interval default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  a_address constant text := btrim(set_alert_recipient.address);
  a_kinds constant text[] := set_alert_recipient.kinds;
  v_known bigint;
begin
  perform procjobs.require_host_of_mail();
  perform procjobs.check_alert_recipient(nullif(a_address, ''), set_alert_recipient.method, a_kinds, set_alert_recipient.pause);
  insert into procjobs.alert_recipients as r (delivery_method, address, name, kinds, pause, created_at, set_at, set_by)
  values (
    set_alert_recipient.method, a_address, set_alert_recipient.name, nullif(a_kinds, '{}'),
    coalesce(set_alert_recipient.pause, interval '5 minutes'), procjobs.clock(), procjobs.clock(), session_user
  )
  on conflict (delivery_method, (case when delivery_method = 'email' then lower(address) else address end)) do nothing
  returning r.id into v_known;
  if v_known is not null then
    return true;
  end if;
  update procjobs.alert_recipients r
  set address = a_address,
      name = coalesce(set_alert_recipient.name, r.name),
      kinds = case when a_kinds is null then r.kinds else nullif(a_kinds, '{}') end,
      pause = coalesce(set_alert_recipient.pause, r.pause),
      set_at = procjobs.clock(),
      set_by = session_user
  where r.delivery_method = set_alert_recipient.method
    and case when r.delivery_method = 'email' then lower(r.address) = lower(a_address) else r.address = a_address end;
  return false;
end
$$;
comment on function procjobs.set_alert_recipient(text, text, text, text[], interval) is
  'Who is told of alerts: an address for email, a channel or member for slack, a URL for webhook. kinds: only those ({}: all); pause: at most one '
  'message in so long (5 minutes). What is null stays as it was. True if it is new. Definer: the admin role has no rights on tables.';

create or replace function procjobs.drop_alert_recipient(address text, method text default 'email')
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from procjobs.alert_recipients r
  where r.delivery_method = drop_alert_recipient.method
    and case
      when r.delivery_method = 'email' then lower(r.address) = lower(btrim(drop_alert_recipient.address))
      else r.address = btrim(drop_alert_recipient.address)
    end;
  return found;
end
$$;
comment on function procjobs.drop_alert_recipient(text, text) is
  'Tells nobody there of alerts any more. False if nobody was. Definer: the admin role has no rights on tables.';

create or replace function procjobs.untold_alerts(p_recipients bigint[], p_now timestamptz)
returns table (recipient_id bigint, alert_id bigint, event text)
language sql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  with concern as (
    select r.id as recipient_id, a.id as alert_id, a.closed_at, exists (
        select from procjobs.alert_letters l where l.alert_id = a.id and l.recipient_id = r.id and l.event = 'opened'
      ) as told, a.first_at >= r.created_at as since_then
    from procjobs.alert_recipients r
    join procjobs.alerts a on r.kinds is null or a.kind = any (r.kinds)
    where r.id = any (p_recipients)
      and (a.closed_at is null or a.closed_at > p_now - interval '1 day')
  )
  select c.recipient_id, c.alert_id, 'opened'
  from concern c
  where not c.told
    and (c.closed_at is null or c.since_then)
  union all
  select c.recipient_id, c.alert_id, 'closed'
  from concern c
  where c.closed_at is not null
    and (c.told or c.since_then)
    and not exists (
      select from procjobs.alert_letters l
      where l.alert_id = c.alert_id and l.recipient_id = c.recipient_id and l.event = 'closed'
    )
$$;
comment on function procjobs.untold_alerts(bigint[], timestamptz) is
  'What these recipients have not been told: openings, and ends of what they know of or what came and went meanwhile. Not what ended more than a day ago.';

create or replace function procjobs.alert_content(p_alerts bigint[], p_events text[])
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 50;
  v_opened integer := cardinality(array_positions(p_events, 'opened'));
  v_closed integer := cardinality(p_events) - v_opened;
  v_title text;
  v_content jsonb;
begin
  -- One that came and went between two messages is one line, and over.
  select
    jsonb_build_object(
      'level', case when v_opened = 0 or bool_and(l.closed_at is not null) then 'good' when bool_or(l.level = 'bad' and l.closed_at is null) then 'bad' else 'warn' end,
      'body', string_agg(l.line, E'\n' order by l.n) filter (where l.n <= c_most)
        || case when count(*) > c_most then format(E'\n\nAnd %s more: select * from procjobs.alerts;', count(*) - c_most) else '' end,
      'alerts', jsonb_agg(l.shown order by l.n) filter (where l.n <= c_most)),
    case count(*) when 1 then min(l.message) end
  into v_content, v_title
  from (
    select
      a.closed_at, coalesce(k.level, 'warn') as level, a.message,
      row_number() over (order by a.closed_at is not null, k.level = 'bad' desc, a.first_at, a.id) as n,
      format('%s: %s (%s)', case when a.closed_at is null then coalesce(k.words, a.kind) else 'Over' end, a.message, case
          when a.closed_at is null then 'since ' || procjobs.say_time(a.first_at)
          else format('%s to %s: %s', procjobs.say_time(a.first_at), procjobs.say_time(a.closed_at), a.closed_by)
        end) as line,
      jsonb_build_object('id', a.id, 'kind', a.kind, 'subject', a.subject, 'message', a.message, 'first_at', a.first_at,
        'closed_at', a.closed_at, 'closed_by', a.closed_by) as shown
    from procjobs.alerts a
    left join procjobs.alert_kinds() k on k.kind = a.kind
    where a.id = any (p_alerts)
  ) l;
  v_title := left(coalesce(v_title, concat_ws(', ',
    case when v_opened > 0 then format('%s alert%s opened', v_opened, case v_opened when 1 then '' else 's' end) end,
    case when v_closed > 0 then format('%s %s over', v_closed, case v_closed when 1 then 'is' else 'are' end) end)), 200);
  return v_content || jsonb_build_object(
    'title', v_title, 'subject', case v_content ->> 'level' when 'good' then 'Over: ' else 'Alert: ' end || v_title);
end
$$;
comment on function procjobs.alert_content(bigint[], text[]) is
  'What a message says of these alerts, of which each has opened or is over: as the template alert takes it, with subject and body for other methods than email.';

create or replace function procjobs.tell_alerts()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_due bigint[];
  v_count integer;
begin
  v_due := array(
    select r.id
    from procjobs.alert_recipients r
    where r.told_at is null or r.told_at <= v_now - r.pause or r.told_at > v_now
    order by r.id
    for update skip locked
  );
  -- Without a worker that has ever been there nothing can be enqueued yet.
  if v_due = '{}' or not exists (select from procjobs.tasks t where t.name = 'procjobs.send_notification') then
    return 0;
  end if;
  with untold as materialized (
    select u.recipient_id, array_agg(u.alert_id order by u.alert_id, u.event) as alerts, array_agg(u.event order by u.alert_id, u.event) as events
    from procjobs.untold_alerts(v_due, v_now) u
    group by u.recipient_id
  ),
  letter as materialized (
    select u.*, procjobs.request_notification(jsonb_populate_record(null::procjobs.notification_jobs, jsonb_build_object(
        'address', r.address, 'address_name', r.name, 'delivery_method', r.delivery_method, 'template', 'alert',
        'notification_type', 'alert', 'urgency', case when 'opened' = any (u.events) then 'urgent' else 'normal' end,
        'content', procjobs.alert_content(u.alerts, u.events)))) as id
    from untold u
    join procjobs.alert_recipients r on r.id = u.recipient_id
  ),
  noted as (
    insert into procjobs.alert_letters (alert_id, recipient_id, event, notification_id, at)
    select e.alert_id, l.recipient_id, e.event, l.id, v_now
    from letter l
    cross join lateral unnest(l.alerts, l.events) as e (alert_id, event)
  )
  update procjobs.alert_recipients r
  set told_at = v_now
  from letter l
  where r.id = l.recipient_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.tell_alerts() is
  'Requests one message to each recipient of alerts who has not been told of everything, with all that opened and all that is over. Each opening is told '
  'once, however many call it at the same time. A chore of upkeep. Returns how many messages. Definer: the worker and admin roles have no rights on tables.';
