-- Tries to deliver a notification, each of two halves: on record before anything leaves, and ended by what the other side said.
-- Where nothing may be sent twice (policy hold) there is a moment between them, on record too: now the message leaves. What is
-- lost before it surely did not arrive, and is in no doubt.
-- Owns:        procjobs.notification_delivery_logs; of notification_jobs how the delivery stands.
-- Lock order:  notification_jobs, then notification_delivery_logs, then breakers. Neither half locks the queue job.

drop function if exists procjobs.open_delivery(procjobs.notification_jobs, text, text, text);
create or replace function procjobs.open_delivery(
  p_job procjobs.notification_jobs,
  p_address text,
  p_worker text,
  p_domain text,
  p_marks boolean
)
returns procjobs.notification_delivery_logs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_delivery procjobs.notification_delivery_logs;
begin
  insert into procjobs.notification_delivery_logs as l (
    job_id, attempt, status, delivery_method, address, worker, started_at, provider, message_id
  )
  select
    p_job.id,
    coalesce(max(t.attempt), 0) + 1,
    'sending',
    p_job.delivery_method,
    procjobs.shown_address(p_job.delivery_method, p_address),
    p_worker,
    procjobs.clock(),
    case when p_marks and procjobs.after_unknown(p_job.delivery_method) = 'hold' then 'none' end,
    coalesce(p_job.message_id, case
      when p_job.delivery_method = 'email' then format('<%s@%s>', p_job.id, p_domain)
      else p_job.id::text
    end)
  from procjobs.notification_delivery_logs t
  where t.job_id = p_job.id
  returning l.* into v_delivery;

  update procjobs.notification_jobs n
  set status = 'processing',
      processed_at = null,
      retry_count = v_delivery.attempt - 1,
      message_id = v_delivery.message_id
  where n.id = p_job.id;
  return v_delivery;
end
$$;
comment on function procjobs.open_delivery(procjobs.notification_jobs, text, text, text, boolean) is
  'Writes a try into the delivery log before the message leaves, so that a try whose end nobody saw is known to have '
    'begun. p_marks: the worker calls leave_delivery before it leaves. Where that matters (policy hold) the provider is none until then.';

create or replace function procjobs.start_delivery(p_notification uuid, p_worker text, p_domain text, p_marks boolean)
returns table (
  status text, reason text, at timestamptz, delivery_id bigint, attempt integer, message_id text,
  delivery_method text, notification_type text, template text, urgency text, content jsonb, recipient_name text, address text,
  timezone text, group_name text, organization_name text, organization_logo_url text, about jsonb,
  unsubscribe_token text, request jsonb, patient boolean, marked boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_job procjobs.notification_jobs;
begin
  at := procjobs.clock();
  select n.* into v_job from procjobs.notification_jobs n where n.id = p_notification for update;
  if not found then
    reason := 'there is no such notification';
  elsif v_job.status = 'sent' then
    status := 'sent';
    reason := 'it was sent already';
  elsif procjobs.hold_delivery(v_job) is not null then
    status := 'failed';
    reason := (select n.last_error from procjobs.notification_jobs n where n.id = p_notification);
  else
    perform procjobs.require_host_of_mail();
    select a.name, a.address, a.timezone into recipient_name, address, timezone from procjobs.addressee(v_job) a;
    select o.status, o.reason into status, reason from procjobs.delivery_obstacle(v_job, address) o;
    content := procjobs.letter_content(v_job);
    if status is null and content is null then
      status := 'cancelled';
      reason := 'nothing of it is left to send: it was read or removed meanwhile';
    end if;
    update procjobs.notification_jobs n
    set status = start_delivery.status, processed_at = start_delivery.at, last_error = start_delivery.reason
    where n.id = p_notification
      and start_delivery.status is not null;
    status := coalesce(status, 'processing');
  end if;

  if status = 'processing' then
    select d.id, d.attempt, d.message_id, d.provider is not null into delivery_id, attempt, message_id, marked
    from procjobs.open_delivery(v_job, address, p_worker, p_domain, p_marks) d;
    delivery_method := v_job.delivery_method;
    notification_type := v_job.notification_type;
    template := v_job.template;
    urgency := v_job.urgency;
    unsubscribe_token := procjobs.sign_subscription(procjobs.subscription_of(v_job));
    request := procjobs.notification_request(v_job);
    patient := at < v_job.scheduled_for + interval '1 day';
    select g.name, o.name, o.logo_url, case when u.id is not null then to_jsonb(u) - 'id' - 'group_id' end
    into group_name, organization_name, organization_logo_url, about
    from (select v_job.group_id, v_job.update_id) n
    left join procjobs.host_updates u on u.id = n.update_id
    left join procjobs.host_groups g on g.id = coalesce(n.group_id, u.group_id)
    left join procjobs.host_organizations o on o.id = g.organization_id;
  end if;
  return next;
end
$$;
comment on function procjobs.start_delivery(uuid, text, text, boolean) is
  'First half of a try: locks the notification, writes the try into the delivery log, returns what is to be sent. '
    'request: what a webhook says of it beside the content; patient: whether to wait for a provider''s rate limit spends no '
    'attempt, for a day; marked: leave_delivery is to be called before it leaves. Where nothing is to be sent, '
  'status is not processing and reason says why.';

create or replace function procjobs.begin_delivery_v2(p_notification uuid, p_worker text, p_domain text)
returns table (
  status text, reason text, at timestamptz, delivery_id bigint, attempt integer, message_id text,
  delivery_method text, notification_type text, template text, urgency text, content jsonb, recipient_name text, address text,
  timezone text, group_name text, organization_name text, organization_logo_url text, about jsonb,
  unsubscribe_token text, request jsonb, patient boolean, marked boolean
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.start_delivery(p_notification, p_worker, p_domain, true)
$$;
comment on function procjobs.begin_delivery_v2(uuid, text, text) is
  'start_delivery for workers, which call leave_delivery of what is marked. Definer: the worker role has no rights on tables.';

create or replace function procjobs.begin_delivery(p_notification uuid, p_worker text, p_domain text)
returns table (
  status text, reason text, at timestamptz, delivery_id bigint, attempt integer, message_id text,
  delivery_method text, notification_type text, template text, urgency text, content jsonb, recipient_name text, address text,
  timezone text, group_name text, organization_name text, organization_logo_url text, about jsonb,
  unsubscribe_token text, request jsonb, patient boolean
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    d.status, d.reason, d.at, d.delivery_id, d.attempt, d.message_id, d.delivery_method, d.notification_type, d.template, d.urgency,
    d.content, d.recipient_name, d.address, d.timezone, d.group_name, d.organization_name, d.organization_logo_url, d.about,
    d.unsubscribe_token, d.request, d.patient
  from procjobs.start_delivery(p_notification, p_worker, p_domain, false) d
$$;
comment on function procjobs.begin_delivery(uuid, text, text) is
  'start_delivery for workers of the release before, which do not say when a message leaves: all that they lose is in doubt. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.leave_delivery(p_delivery bigint, p_provider text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update procjobs.notification_delivery_logs l
  set provider = p_provider
  where l.id = p_delivery
    and l.status = 'sending';
  return found;
end
$$;
comment on function procjobs.leave_delivery(bigint, text) is
  'From now on the message may arrive: its try is in doubt if nobody says how it ended. Called, and committed, before it leaves. '
  'False: the try was given up meanwhile, nothing may be sent. Definer: the worker role has no rights on tables.';

drop function if exists procjobs.finish_delivery(bigint, text, integer, text, integer, text, text);
create or replace function procjobs.finish_delivery(
  p_delivery bigint,
  p_status text,
  p_took_ms integer,
  p_provider text,
  p_code integer,
  p_reply text,
  p_error text,
  p_stage text default null,
  p_provider_id text default null,
  p_provider_code text default null,
  p_retry_after double precision default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := procjobs.clock();
  v_job uuid;
  v_address text;
  v_queue_job bigint;
  v_delivery procjobs.notification_delivery_logs;
  v_moved boolean;
begin
  select l.job_id, l.address into v_job, v_address from procjobs.notification_delivery_logs l where l.id = p_delivery;
  select n.job_id into v_queue_job
  from procjobs.notification_jobs n
  where n.id = v_job
  for update;
  update procjobs.notification_delivery_logs l
  set status = p_status,
      finished_at = v_now,
      took_ms = p_took_ms,
      provider = p_provider,
      smtp_code = case when l.delivery_method = 'email' then p_code end,
      smtp_reply = case when l.delivery_method = 'email' then left(p_reply, 2000) end,
      http_status = case when l.delivery_method <> 'email' then p_code end,
      provider_id = left(p_provider_id, 500),
      provider_code = left(p_provider_code, 100),
      retry_after = v_now + make_interval(secs => p_retry_after),
      error = left(p_error, 2000)
  where l.id = p_delivery
  returning l.* into v_delivery;
  perform procjobs.note_bounce(v_job, v_address, p_stage, p_code, p_reply);

  -- A message that left has left, whoever says so and however late. Any other news counts from the latest try only.
  update procjobs.notification_jobs n
  set status = case p_status when 'sent' then 'sent' when 'refused' then 'failed' else 'pending' end,
      processed_at = case when p_status in ('sent', 'refused') then v_now end,
      last_error = case when p_status = 'sent' then n.last_error else left(p_error, 2000) end
  where n.id = v_job
    and n.status <> 'sent'
    and (
      p_status = 'sent'
      or n.status = 'processing'
      and not exists (
        select from procjobs.notification_delivery_logs later
        where later.job_id = v_job
          and later.id > p_delivery
      )
    );
  v_moved := found;
  perform procjobs.report_delivery(v_delivery, p_code, v_queue_job);
  return v_moved;
end
$$;
comment on function procjobs.finish_delivery(bigint, text, integer, text, integer, text, text, text, text, text, double precision) is
  'Second half of a try: completes its row of the delivery log and moves the notification on; p_stage is the command of SMTP that '
    'the reply is to: an address that bounced at rcpt is suppressed. Returns false when it had been overtaken. '
  'Definer: the worker role has no rights on tables.';
