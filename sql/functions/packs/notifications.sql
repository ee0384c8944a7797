-- Notifications: one message to one recipient, requested in SQL, delivered by a worker, every try on record.
-- Owns:        procjobs.notification_jobs, procjobs.notification_delivery_logs.
-- Lock order:  procrastinate_jobs, then notification_jobs, then notification_delivery_logs, then breakers.
--              The two halves of a delivery lock no queue job; the trigger at the end runs under the queue job's lock.
-- The people come from the host_* views, which are looked up when a function runs: see sql/functions/host.sql.

create or replace function procjobs.delivery_methods()
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array['email', 'sms', 'whatsapp', 'slack', 'webhook', 'apprise']
$$;
comment on function procjobs.delivery_methods() is
  'Delivery methods for which there is a sender, in procjobs.mail and procjobs.channels. Each further one is added here '
  'together with its sender.';

create or replace function procjobs.content_form_problem(p_content jsonb)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_content is null or jsonb_typeof(p_content) <> 'object' then
      format('content is %s, not an object', coalesce(jsonb_typeof(p_content), 'null'))
    when octet_length(p_content::text) > 262144 then
      format('content has %s bytes, at most 262144 are allowed', octet_length(p_content::text))
  end
$$;
comment on function procjobs.content_form_problem(jsonb) is 'Why this is no content, of whatever template; null if it may be one.';

create or replace function procjobs.content_problems(p_content jsonb, p_about_update boolean)
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when procjobs.content_form_problem(p_content) is not null then array[procjobs.content_form_problem(p_content)]
    else array(
      select format('content.%s is %s, not a string', key, jsonb_typeof(value))
      from jsonb_each(p_content)
      where key in ('subject', 'body', 'preview', 'action_label', 'action_url')
        and jsonb_typeof(value) not in ('string', 'null')
    ) || array(
      select format('content.%s is missing or empty', key)
      from unnest(array['subject', 'body']) key
      where not p_about_update
        and coalesce(btrim(p_content ->> key, E' \t\r\n'), '') = ''
    ) || array(
      select format('content.%s has %s characters, at most 255 are allowed', key, length(p_content ->> key))
      from unnest(array['subject', 'preview', 'action_label']) key
      where length(p_content ->> key) > 255
    ) || array(
      -- What goes into a header, or next to one, is one line: nothing can smuggle in a header of its own.
      select format('content.%s has a line break or another control character', key)
      from unnest(array['subject', 'preview', 'action_label', 'action_url']) key
      where (p_content ->> key) ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
    ) || array(
      select 'content.action_url is not an http or https address'
      where (p_content ->> 'action_url') !~* '^https?://[^[:space:]"''<>]+$' collate "C"
    ) || array(
      select 'content.action_label has no action_url to lead to'
      where p_content ->> 'action_label' is not null
        and p_content ->> 'action_url' is null
    )
  end
$$;
comment on function procjobs.content_problems(jsonb, boolean) is
  'What keeps a content from being delivered, one sentence each; empty if nothing does. '
  'About an update, subject and body may be left out: the update''s own are taken.';

create or replace function procjobs.check_notification(
  p_type text,
  p_urgency text,
  p_method text,
  p_content jsonb,
  p_delay integer,
  p_about_update boolean
)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := array[]::text[];
begin
  if p_type is null or p_type !~ '^[a-z][a-z0-9_]{0,62}$' collate "C" then
    v_problems := v_problems || format('notification_type %s is not a lowercase word of at most 63 '
      'letters', coalesce(quote_literal(p_type), 'null'));
  end if;
  v_problems := array_remove(v_problems || procjobs.urgency_problem(p_urgency), null);
  if p_method is null or p_method <> all (procjobs.delivery_methods()) then
    v_problems := v_problems || format('delivery_method %s has no sender', coalesce(quote_literal(p_method), 'null'));
  end if;
  if p_delay is null or p_delay < 0 then
    v_problems := v_problems || format('delay_minutes %s is not 0 or more', coalesce(p_delay::text, 'null'));
  end if;
  v_problems := v_problems || procjobs.content_problems(p_content, p_about_update);
  if p_method = 'apprise' then
    v_problems := v_problems || array_remove(
      array[procjobs.address_problem('apprise', procjobs.recipient_address('apprise', '{}', p_content))], null);
  end if;

  if cardinality(v_problems) > 0 then
    raise exception 'the notification cannot be delivered: %', v_problems[1]
      using errcode = 'PJ023',
            detail = array_to_string(v_problems, E'\n'),
            hint = format(
              'Delivery methods with a sender: %s. Content: {"subject": "...", "body": "...", "preview": "...", '
                '"action_label": "...", "action_url": "https://..."}.',
              array_to_string(procjobs.delivery_methods(), ', '));
  end if;
end
$$;
comment on function procjobs.check_notification(text, text, text, jsonb, integer, boolean) is
  'Raises PJ023 with every problem in DETAIL unless a notification like this can be delivered.';

create or replace function procjobs.check_addressee(p_recipient uuid, p_group uuid, p_update uuid, p_method text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_recipient jsonb;
  v_problem text;
begin
  select to_jsonb(r) into v_recipient from procjobs.host_recipients r where r.id = p_recipient;
  if not found then
    raise exception 'unknown recipient %', coalesce(p_recipient::text, 'null')
      using errcode = 'PJ020',
            detail = 'no such row in procjobs.host_recipients',
            hint = 'select id, name from procjobs.host_recipients lists whom notifications can go to.';
  end if;
  v_problem := procjobs.address_problem(p_method, procjobs.recipient_address(p_method, v_recipient, '{}'));
  if v_problem is not null and p_method <> 'apprise' then
    raise exception 'recipient % %', p_recipient, v_problem
      using errcode = 'PJ023',
            detail = procjobs.address_source(p_method),
            hint = 'Give the recipient an address in the application.';
  end if;

  if p_group is not null and not exists (select from procjobs.host_groups g where g.id = p_group) then
    raise exception 'unknown group %', p_group
      using errcode = 'PJ021',
            detail = 'no such row in procjobs.host_groups',
            hint = 'select id, name from procjobs.host_groups lists the groups.';
  end if;
  if p_group is not null and not exists (
    select from procjobs.host_group_recipients m where m.group_id = p_group and m.recipient_id = p_recipient
  ) then
    raise exception 'recipient % does not receive what group % shares', p_recipient, p_group
      using errcode = 'PJ021',
            detail = 'no such row in procjobs.host_group_recipients',
            hint = 'Add the recipient to the group, or leave the group null.';
  end if;

  if p_update is not null and not exists (
    select from procjobs.host_updates u where u.id = p_update and (p_group is null or u.group_id = p_group)
  ) then
    raise exception 'unknown update %', p_update
      using errcode = 'PJ022',
            detail = case
              when p_group is null then 'no such row in procjobs.host_updates'
              else format('not an update of group %s', p_group)
            end,
            hint = 'select id, title from procjobs.host_updates where group_id = ... lists the updates of a group.';
  end if;
end
$$;
comment on function procjobs.check_addressee(uuid, uuid, uuid, text) is
  'Raises PJ020, PJ021 or PJ022 unless recipient, group and update exist and belong together, PJ023 when the '
    'recipient cannot be reached that way.';

create or replace function procjobs.defer_notification(p_row procjobs.notification_jobs)
returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.defer(
    task => 'procjobs.send_notification',
    args => jsonb_build_object('notification_id', p_row.id),
    priority => procjobs.urgency_priority(p_row.urgency),
    scheduled_at => p_row.scheduled_for,
    tags => array['notification', p_row.notification_type, p_row.delivery_method]  -- by the last one its breaker knows it
  )
$$;
comment on function procjobs.defer_notification(procjobs.notification_jobs) is 'Enqueues the job of a notification. Returns its id.';

create or replace function procjobs.request_notification(p_row procjobs.notification_jobs)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  p_row.id := gen_random_uuid();
  p_row.job_id := procjobs.defer_notification(p_row);
  p_row.status := 'pending';
  p_row.created_at := procjobs.clock();
  p_row.created_by := session_user;
  p_row.scheduled_for := coalesce(p_row.scheduled_for, p_row.created_at);
  p_row.retry_count := 0;
  insert into procjobs.notification_jobs select p_row.*;
  return p_row.id;
end
$$;
comment on function procjobs.request_notification(procjobs.notification_jobs) is
  'Writes the row of a notification that was checked, and its queue job; the row''s id, state and times are set here. Returns the id.';

create or replace function procjobs.enqueue_notification_job(
  recipient uuid,
  "group" uuid default null,
  update uuid default null,
  notification_type text default 'immediate',
  urgency text default 'normal',
  delivery_method text default 'email',
  content jsonb default '{}',
  delay_minutes integer default 0
)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  a_recipient alias for $1;
  a_group alias for $2;
  a_update alias for $3;
  a_type alias for $4;
  a_urgency alias for $5;
  a_method alias for $6;
  a_content alias for $7;
  a_delay alias for $8;
  v_row procjobs.notification_jobs;
begin
  perform procjobs.require_host_of_mail();
  perform procjobs.check_notification(a_type, a_urgency, a_method, a_content, a_delay, a_update is not null);
  perform procjobs.check_addressee(a_recipient, a_group, a_update, a_method);

  v_row.recipient_id := a_recipient;
  v_row.group_id := a_group;
  v_row.update_id := a_update;
  v_row.template := 'notification';
  v_row.notification_type := a_type;
  v_row.urgency := a_urgency;
  v_row.delivery_method := a_method;
  v_row.content := a_content;
  v_row.scheduled_for := case when a_delay > 0 then procjobs.clock() + make_interval(mins => a_delay) end;
  return procjobs.request_notification(v_row);
end
$$;
comment on function procjobs.enqueue_notification_job(uuid, uuid, uuid, text, text, text, jsonb, integer) is
  'Requests a notification: a row of notification_jobs, whose id is returned, and its queue job, both in the '
    'caller''s transaction. '
  'Urgent ones go first; not before delay_minutes; three tries, one and two minutes apart. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.open_delivery(
  p_job procjobs.notification_jobs,
  p_address text,
  p_worker text,
  p_domain text
)
returns procjobs.notification_delivery_logs
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_delivery procjobs.notification_delivery_logs;
begin
  insert into procjobs.notification_delivery_logs as l (
    job_id, attempt, status, delivery_method, address, worker, started_at, message_id
  )
  select
    p_job.id,
    coalesce(max(t.attempt), 0) + 1,
    'sending',
    p_job.delivery_method,
    procjobs.shown_address(p_job.delivery_method, p_address),
    p_worker,
    procjobs.clock(),
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
comment on function procjobs.open_delivery(procjobs.notification_jobs, text, text, text) is
  'Writes a try into the delivery log before the message leaves, so that a try whose end nobody saw is known to have '
    'begun.';

create or replace function procjobs.begin_delivery(p_notification uuid, p_worker text, p_domain text)
returns table (
  status text, reason text, at timestamptz, delivery_id bigint, attempt integer, message_id text,
  delivery_method text, notification_type text, template text, urgency text, content jsonb, recipient_name text, address text,
  timezone text, group_name text, organization_name text, organization_logo_url text, about jsonb,
  unsubscribe_token text, request jsonb, patient boolean
)
language plpgsql
security definer
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
    set status = begin_delivery.status, processed_at = begin_delivery.at, last_error = begin_delivery.reason
    where n.id = p_notification
      and begin_delivery.status is not null;
    status := coalesce(status, 'processing');
  end if;

  if status = 'processing' then
    select d.id, d.attempt, d.message_id into delivery_id, attempt, message_id
    from procjobs.open_delivery(v_job, address, p_worker, p_domain) d;
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
comment on function procjobs.begin_delivery(uuid, text, text) is
  'First half of a try: locks the notification, writes the try into the delivery log, returns what is to be sent. '
    'request: what a webhook says of it beside the content; patient: whether to wait for a provider''s rate limit spends no '
    'attempt, for a day. Where nothing is to be sent, '
  'status is not processing and reason says why. Definer: the worker role has no rights on tables.';

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
  v_method text;
  v_moved boolean;
begin
  select l.job_id, l.address into v_job, v_address from procjobs.notification_delivery_logs l where l.id = p_delivery;
  select n.job_id, n.delivery_method into v_queue_job, v_method
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
  where l.id = p_delivery;
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
  perform procjobs.report_outcome(
    procjobs.method_breaker(v_method), procjobs.delivery_verdict(p_status, p_code), v_queue_job,
    case when p_status in ('deferred', 'unknown') then p_error end
  );
  return v_moved;
end
$$;
comment on function procjobs.finish_delivery(bigint, text, integer, text, integer, text, text, text, text, text, double precision) is
  'Second half of a try: completes its row of the delivery log and moves the notification on; p_stage is the command of SMTP that '
    'the reply is to: an address that bounced at rcpt is suppressed. Returns false when it had been overtaken. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.follow_notification_job()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ended text;
  v_reason text;
  v_id uuid;
begin
  if tg_op <> 'DELETE' and new.status = 'todo' then
    update procjobs.notification_jobs n
    set status = 'pending', processed_at = null
    where n.job_id = new.id
      and n.status in ('processing', 'failed', 'cancelled');
    return null;
  end if;

  if tg_op = 'DELETE' then
    select h.status::text, coalesce(h.note, h.cancel ->> 'reason') into v_ended, v_reason
    from procjobs.job_history h
    where h.id = old.id
    order by h.finished_at desc
    limit 1;
    v_reason := case when v_ended is null then 'the queue job was deleted' else v_reason end;
  else
    v_ended := new.status::text;
    v_reason := new.pj_cancel ->> 'reason';
  end if;

  if v_ended = 'failed' then
    select coalesce(a.error_message, a.error_class) into v_reason
    from procjobs.job_attempts a
    where a.job_id = old.id
    order by a.id desc
    limit 1;
  end if;

  update procjobs.notification_jobs n
  set status = case when v_ended in ('failed', 'succeeded') then 'failed' else 'cancelled' end,
      processed_at = procjobs.clock(),
      last_error = coalesce(v_reason, n.last_error, 'the queue job ended without a delivery')
  where n.job_id = old.id
    and n.status in ('pending', 'processing')
  returning n.id into v_id;

  perform procjobs.doubt_lost_tries(v_id);
  return null;
end
$$;
comment on function procjobs.follow_notification_job() is
  'Trigger: a queue job that was cancelled, deleted, given up or made to wait again takes its notification with it. '
  'Definer: whoever may cancel a job need no rights on our tables.';

-- Row triggers whose WHEN spares every other task's jobs the call.
create or replace trigger pj_follow_notification
after update of status on public.procrastinate_jobs
for each row
when (new.task_name = 'procjobs.send_notification' and new.status <> 'doing' and new.status is distinct from old.status)
execute function procjobs.follow_notification_job();

comment on trigger pj_follow_notification on public.procrastinate_jobs is
  'A notification whose queue job waits again, failed or was cancelled in place.';

create or replace trigger pj_follow_notification_back
after insert on public.procrastinate_jobs
for each row
when (new.task_name = 'procjobs.send_notification' and current_setting('procjobs.letters_new', true) is distinct from 'on')
execute function procjobs.follow_notification_job();
comment on trigger pj_follow_notification_back on public.procrastinate_jobs is
  'A notification whose queue job was taken back from the history. Letters that request_letters inserts by the thousand have nothing to bring back.';

create or replace trigger pj_follow_notification_away
after delete on public.procrastinate_jobs
for each row
when (old.task_name = 'procjobs.send_notification')
execute function procjobs.follow_notification_job();
comment on trigger pj_follow_notification_away on public.procrastinate_jobs is
  'A notification whose queue job was moved to the history, or deleted.';
