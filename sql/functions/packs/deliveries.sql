-- Deliveries as seen from outside: what they say of what they depend on, doubtful ones, figures, alerts.
-- Owns:        delivery_policies; notification_delivery_logs.resolved_at and resolved_by.
-- Lock order:  procrastinate_jobs, notification_jobs, notification_delivery_logs, then breakers and as those say.

drop function if exists procjobs.method_breaker(text);
create or replace function procjobs.method_breaker(p_method text, p_target text default null)
returns text
language sql
immutable
parallel safe
as $$
  select case p_method
    when 'email' then 'smtp'
    when 'apprise' then 'apprise ' || p_target
    when 'webhook' then concat_ws(' ', 'webhook', procjobs.webhook_receiver(p_target))
    else p_method
  end
$$;
comment on function procjobs.method_breaker(text, text) is
  'The breaker of a delivery method; of apprise and webhook, whose targets and receivers are services of their own, that of the target. It is also the tag by which it '
  'knows their jobs. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.webhook_receiver(p_address text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- Names of breakers have no colon, and are short.
  select case when length(h.name) > 70 then md5(h.name) else h.name end
  from (
    select translate(
      regexp_replace(substring(lower(p_address) from '^(?:[a-z]+://)?([^/?#]+)'), case when lower(p_address) like 'https:%' then ':443$' else ':80$' end, ''),
      ':', ' ') as name
  ) h
$$;
comment on function procjobs.webhook_receiver(text) is
  'Which server an address of a webhook is at, for the name of its breaker: the host, and the port if it is not the usual one. Null for null.';

create or replace function procjobs.report_delivery(
  p_delivery procjobs.notification_delivery_logs, p_code integer, p_queue_job bigint
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_breaker text := procjobs.method_breaker(p_delivery.delivery_method, p_delivery.address);
  v_ok boolean := p_delivery.provider_code is distinct from 'no_connection' and procjobs.delivery_verdict(p_delivery.status, p_code);
  v_error text := case when p_delivery.status in ('deferred', 'unknown') then p_delivery.error end;
begin
  -- A worker that lacks settings, or a target that whoever enqueues named, asked nobody: that says nothing of any service.
  if p_delivery.provider = 'none' or p_delivery.provider_code in ('not_set_up', 'no_target') then
    return;
  end if;
  -- Targets are in the workers' environment, receivers are the application's: their breakers are made when they are needed first.
  if p_delivery.delivery_method in ('apprise', 'webhook') and not v_ok then
    insert into procjobs.breakers (name, queue, tag, set_at, set_by, since)
    values (v_breaker, 'notifications', v_breaker, procjobs.clock(), 'procjobs itself', procjobs.clock())
    on conflict on constraint breakers_pkey do nothing;
  end if;
  if p_delivery.delivery_method = 'webhook' then
    -- That of all receivers: when nearly none can be reached, it is the way out that fails.
    perform procjobs.report_outcome(procjobs.method_breaker('webhook'), v_ok, p_queue_job, v_error);
  end if;
  perform procjobs.report_outcome(v_breaker, v_ok, p_queue_job, v_error);
end
$$;
comment on function procjobs.report_delivery(procjobs.notification_delivery_logs, integer, bigint) is
  'Tells the breaker of a try''s method, target or receiver how it ended; p_code: the reply''s, of SMTP or HTTP.';

create or replace function procjobs.forget_breakers()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.breakers b
  where b.name in (
    select o.name
    from procjobs.breakers o
    where o.set_by = 'procjobs itself'
      and o.state = 'closed'
      and coalesce(o.last_failure_at, o.since) < procjobs.clock() - interval '7 days'
    for update skip locked
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_breakers() is
  'Deletes breakers of targets and receivers that were made because one failed, and have been closed without a failure for seven days; none that somebody set. '
  'A chore of upkeep. Returns how many.';

create or replace function procjobs.delivery_verdict(p_status text, p_code integer)
returns boolean
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_status = 'sent' then true
    -- Who answers about this message works. Without an answer nobody was asked.
    when p_status = 'refused' then case when p_code is not null then true end
    when p_status = 'unknown' or p_code is null then false
    -- Closing down, out of order, out of space, no login; of HTTP, no or an expired login, a redirect, a time out and the
    -- server's own errors, also those that are told under an OK.
    when p_code in (401, 403, 408, 421, 451, 452, 454) or p_code >= 500 or p_code between 200 and 399 then false
    when p_code = 429 then null
    else true
  end
$$;
comment on function procjobs.delivery_verdict(text, integer) is
  'What a try says of the server it went to: true it works, false it does not, null nothing. A refused recipient says that it works.';

create or replace function procjobs.after_unknown(p_method text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select p.after_unknown from procjobs.delivery_policies p where p.delivery_method = p_method), 'hold')
$$;
comment on function procjobs.after_unknown(text) is
  'What follows a try of this method whose end nobody saw: retry or hold.';

drop function if exists procjobs.set_delivery_policy(text, text);
create or replace function procjobs.set_delivery_policy(delivery_method text, after_unknown text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_why text := procjobs.give_reason(set_delivery_policy.reason);
  v_changed boolean;
begin
  if set_delivery_policy.delivery_method is null or set_delivery_policy.after_unknown is null
    or set_delivery_policy.after_unknown not in ('retry', 'hold')
  then
    raise exception 'after_unknown % cannot be', quote_nullable(set_delivery_policy.after_unknown)
      using errcode = 'PJ009',
            detail = format('for delivery method %s', quote_nullable(set_delivery_policy.delivery_method)),
            hint = 'retry: it is sent again, at least once; hold: somebody decides. select procjobs.set_delivery_policy(''sms'', ''hold'');';
  end if;
  if set_delivery_policy.delivery_method <> all (procjobs.delivery_methods()) then
    raise exception 'there is no delivery method %', quote_literal(set_delivery_policy.delivery_method)
      using errcode = 'PJ009',
            detail = format('delivery methods: %s', array_to_string(procjobs.delivery_methods(), ', ')),
            hint = 'select procjobs.set_delivery_policy(''email'', ''hold'');';
  end if;
  insert into procjobs.delivery_policies as p (delivery_method, after_unknown, set_at)
  values (set_delivery_policy.delivery_method, set_delivery_policy.after_unknown, procjobs.clock())
  on conflict on constraint delivery_policies_pkey do update
  set after_unknown = excluded.after_unknown, set_at = excluded.set_at, set_by = session_user
  where p.after_unknown <> excluded.after_unknown;
  v_changed := found;
  perform procjobs.give_reason(v_why);
  return v_changed;
end
$$;
comment on function procjobs.set_delivery_policy(text, text, text) is
  'What follows a try of this delivery method whose end nobody saw: retry (out of the box for email, slack, webhook) or hold (sms, whatsapp). '
  'False if it was so already; the reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';

create or replace function procjobs.doubt_lost_tries(p_notification uuid)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.notification_delivery_logs l
  set status = case when l.provider = 'none' then 'deferred' else 'unknown' end,
      error = case
        when l.provider = 'none' then 'the worker was lost before the message left'
        else 'the worker was lost during the try: the message may have arrived'
      end
  where l.job_id = p_notification
    and l.status = 'sending'
$$;
comment on function procjobs.doubt_lost_tries(uuid) is
  'Tries that have begun and of which nobody will say how they ended are unknown from now on; deferred, where it is on record that '
  'nothing had left yet (leave_delivery).';

create or replace function procjobs.hold_delivery(p_job procjobs.notification_jobs)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_reason constant text := 'it may have arrived already, and is not sent twice: say what became of it with procjobs.resolve_delivery';
begin
  perform procjobs.doubt_lost_tries(p_job.id);
  if procjobs.after_unknown(p_job.delivery_method) = 'retry' or not exists (
    select from procjobs.notification_delivery_logs l
    where l.job_id = p_job.id
      and l.status = 'unknown'
      and l.resolved_at is null
  ) then
    return null;
  end if;
  update procjobs.notification_jobs n
  set status = 'failed', processed_at = procjobs.clock(), last_error = c_reason
  where n.id = p_job.id;
  return c_reason;
end
$$;
comment on function procjobs.hold_delivery(procjobs.notification_jobs) is
  'Holds a notification, locked by the caller, whose last try is unknown, where its method''s policy says so. Returns why; null: it may be tried.';

create or replace function procjobs.resolve_delivery(notification uuid, outcome text)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid := notification;
  v_queue_job bigint := (select n.job_id from procjobs.notification_jobs n where n.id = notification);
  v_state text;
  v_job procjobs.notification_jobs;
begin
  if outcome is null or outcome not in ('sent', 'lost') then
    raise exception 'a delivery cannot be resolved as %', quote_nullable(outcome)
      using errcode = 'PJ009', detail = format('notification %s', v_id), hint = 'sent: it arrived; lost: it did not, and is sent again.';
  end if;
  select j.status into v_state from public.procrastinate_jobs j where j.id = v_queue_job for update;
  select n.* into v_job from procjobs.notification_jobs n where n.id = v_id for update;
  if v_state = 'doing' or not exists (
    select from procjobs.notification_delivery_logs l
    where l.job_id = v_id and l.status = 'unknown' and l.resolved_at is null
  ) or v_job.status not in ('pending', 'failed') then
    raise exception 'there is nothing to resolve about notification %', coalesce(v_id::text, 'null')
      using errcode = 'PJ008',
            detail = format('it is %s, its queue job %s', coalesce(v_job.status, 'unknown'), coalesce(v_state, 'over')),
            hint = 'select * from procjobs.unresolved_deliveries lists those that are in doubt.';
  end if;

  update procjobs.notification_delivery_logs l
  set resolved_at = procjobs.clock(), resolved_by = session_user
  where l.job_id = v_id and l.status = 'unknown' and l.resolved_at is null;
  if outcome = 'sent' then
    update procjobs.notification_jobs n
    set status = 'sent', processed_at = procjobs.clock()
    where n.id = v_id;
  elsif v_state is distinct from 'todo' then
    update procjobs.notification_jobs n
    set status = 'pending', processed_at = null
    where n.id = v_id;
    if v_state is not null or exists (select from procjobs.job_history h where h.id = v_queue_job) then
      perform procjobs.retry(v_queue_job);
    else
      update procjobs.notification_jobs n set job_id = procjobs.defer_notification(n) where n.id = v_id;
    end if;
  end if;
  return case outcome when 'sent' then 'sent' else 'pending' end;
end
$$;
comment on function procjobs.resolve_delivery(uuid, text) is
  'Says what became of a notification whose last try nobody saw the end of: sent (it arrived: it is over), or lost (it did not: it is sent again). '
  'Returns its state. PJ008: there is nothing to resolve. Definer: the admin role has no rights on tables.';

create or replace function procjobs.notification_metrics(p_span interval, p_worker text default null)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with figures as (
    select
      l.delivery_method as method,
      count(*) filter (where l.status = 'sent') as sent,
      count(*) filter (where l.status = 'deferred') as deferred,
      count(*) filter (where l.status = 'refused') as refused,
      count(*) filter (where l.status = 'unknown') as unknown,
      round(percentile_cont(0.5) within group (order by l.took_ms)) as p50_ms,
      round(percentile_cont(0.95) within group (order by l.took_ms)) as p95_ms
    from procjobs.notification_delivery_logs l
    where l.finished_at > procjobs.clock() - p_span
      and (p_worker is null or l.worker = p_worker)
    group by grouping sets ((l.delivery_method), ())
  )
  select
    (select to_jsonb(f) - 'method' from figures f where f.method is null)
    || jsonb_build_object(
      'waiting', (
        select count(*) from procjobs.notification_jobs n where n.status = 'pending' and n.scheduled_for <= procjobs.clock()
      ),
      'methods', (select coalesce(jsonb_object_agg(f.method, to_jsonb(f) - 'method'), '{}') from figures f where f.method is not null),
      'breakers', (
        select coalesce(jsonb_object_agg(b.name, b.state), '{}')
        from procjobs.breakers b
        where b.name in (select procjobs.method_breaker(m) from unnest(procjobs.delivery_methods()) m)
          or b.tag = b.name and b.name like any (array['apprise %', 'webhook %'])
      )
    )
$$;
comment on function procjobs.notification_metrics(interval, text) is
  'Deliveries that ended within the last p_span, all or one worker''s: how, and how long they took, in all and by method; how many notifications wait, '
  'and the breakers of their methods. Nothing of contents and addresses. Definer: the worker role has no rights on tables.';

drop function if exists procjobs.set_failed_alert(integer, interval);
create or replace function procjobs.set_failed_alert(failed integer, within interval default null, reason text default null)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(reason);
begin
  if coalesce(failed, 0) < 1 or within <= interval '0' then
    raise exception 'an alert at % failed notifications within % cannot be', coalesce(failed::text, 'null'), coalesce(within::text, 'null')
      using errcode = 'PJ009',
            detail = 'it is a number of at least 1, and a positive length of time',
            hint = 'select procjobs.set_failed_alert(100, ''1 hour'');';
  end if;
  update procjobs.schedule_settings s
  set failed_limit = failed,
      failed_within = coalesce(within, s.failed_within);
  perform procjobs.give_reason(v_why);
end
$$;
comment on function procjobs.set_failed_alert(integer, interval, text) is
  'Raises an alert when more notifications than this failed for good within this time (null: what it was; out of the box 100, 1 hour). The reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';

create or replace function procjobs.watch_notifications()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_limit integer;
  v_within interval;
  v_count integer;
begin
  select s.failed_limit, s.failed_within into v_limit, v_within from procjobs.schedule_settings s;
  select count(*) into v_count
  from (
    select from procjobs.notification_jobs n
    where n.status = 'failed'
      and n.processed_at > procjobs.clock() - v_within
    limit v_limit + 1
  ) failed;
  if v_count > v_limit then
    perform procjobs.raise_alert('notifications_failed', 'notifications',
      format('more than %s notifications failed within %s', v_limit, procjobs.say_span(v_within)), jsonb_build_object('limit', v_limit));
  else
    perform procjobs.close_alerts(array['notifications_failed'], null, 'fewer fail');
  end if;
end
$$;
comment on function procjobs.watch_notifications() is 'Opens and closes the alert that too many notifications failed.';

create or replace function procjobs.forget_notifications(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_before timestamptz := procjobs.clock() - interval '90 days';
  v_count integer;
begin
  delete from procjobs.notification_jobs n
  where n.id in (
    select o.id
    from procjobs.notification_jobs o
    where o.created_at < v_before
      and o.processed_at < v_before
      -- A dead letter can be sent again; its link may still open something; in doubt somebody has to say what became of it.
      and not exists (select from public.procrastinate_jobs j where j.id = o.job_id)
      and not exists (select from procjobs.letter_secrets s where s.notification_id = o.id)
      and not exists (select from procjobs.unresolved_deliveries u where u.notification_id = o.id)
    order by o.created_at
    limit p_max_rows
    for update skip locked
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_notifications(integer) is
  'Deletes notifications, with their tries, that ended more than 90 days ago; not those whose job is a dead letter, whose link may be opened, or that are in doubt. '
  'A chore of upkeep. Returns how many.';

create or replace function procjobs.list_unresolved(p_max_rows integer default 100)
returns table (
  notification_id uuid, job_id bigint, delivery_method text, notification_type text, policy text, attempt integer,
  started_at timestamptz, address text, provider text, message_id text, error text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.unresolved_deliveries u order by u.started_at desc limit p_max_rows
$$;
comment on function procjobs.list_unresolved(integer) is 'procjobs.unresolved_deliveries, the latest first.';

create or replace function procjobs.doctor_deliveries()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  -- Errors of workers that lack something name settings and targets, never values.
  select 'warning', 'channels', format('%s notifications by %s wait for a worker that has what it takes: %s says %s',
      count(distinct l.job_id), l.delivery_method, string_agg(distinct l.worker, ', '), l.error),
    'set it on every worker of the queue notifications, and restart them'
  from procjobs.notification_delivery_logs l
  join procjobs.notification_jobs n on n.id = l.job_id and n.status = 'pending'
  where l.finished_at > procjobs.clock() - interval '2 hours'
    and l.provider_code in ('not_set_up', 'no_target')
  group by l.delivery_method, l.error
  union all
  select 'warning', 'deliveries', format('%s notifications by %s may have arrived or not, and are not sent again', count(distinct l.job_id), l.delivery_method),
    'procjobs deliveries lists them; procjobs deliveries resolve ID says what became of one: sent, or lost (it is sent again)'
  from procjobs.notification_delivery_logs l
  join procjobs.notification_jobs n on n.id = l.job_id and n.status = 'failed'
  where l.status = 'unknown'
    and l.resolved_at is null
  group by l.delivery_method
$$;
comment on function procjobs.doctor_deliveries() is
  'Notifications that wait for a worker with the settings of their channel, and those of which nobody knows whether they arrived.';
