-- Notifications: one message to one recipient, requested in SQL, delivered by a worker (delivery_tries.sql).
-- Owns:        procjobs.notification_jobs.
-- Lock order:  procrastinate_jobs, then notification_jobs. The trigger at the end runs under the queue job's lock.
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
    -- What no worker could read. Asked first: 1e131071 is eight bytes until it is written out.
    when procjobs.limit_fault('', p_content) ->> 'code' in ('PJ004', 'PJ005') then
      format('content cannot be read: %s', procjobs.limit_fault('', p_content) ->> 'detail')
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
      where not procjobs.is_web_address(p_content ->> 'action_url')
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

drop function if exists procjobs.notification_tags(text, text);
create or replace function procjobs.notification_tags(p_type text, p_method text, p_target text default null)
returns text[]
language sql
immutable
parallel safe
as $$
  select array['notification', case when p_type = any (procjobs.delivery_methods()) then 'type ' || p_type else p_type end, p_method]
    || case when p_method in ('apprise', 'webhook') and p_target is not null
      then array[procjobs.method_breaker(p_method, p_target)] else '{}' end
$$;
comment on function procjobs.notification_tags(text, text, text) is
  'Tags of a notification''s job. By the method''s, of apprise by the target''s, of webhooks by the receiver''s too, its breaker knows it, so that no type may look like one. '
  'Without a SET clause, so that the planner can inline it.';

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
    tags => procjobs.notification_tags(
      p_row.notification_type, p_row.delivery_method, case p_row.delivery_method
        when 'apprise' then procjobs.recipient_address('apprise', '{}', p_row.content)
        when 'webhook' then (select a.address from procjobs.addressee(p_row) a)
      end
    )
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

create or replace function procjobs.submit_notification(
  recipient uuid,
  content jsonb,
  "group" uuid default null,
  update uuid default null,
  notification_type text default 'immediate',
  urgency text default 'normal',
  delivery_method text default 'email',
  delay_minutes integer default 0,
  requested_by uuid default null
)
returns table (message_id text, job_id uuid, queue_job_id bigint)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  a_recipient alias for $1;
  a_person alias for $9;
  v_id uuid;
begin
  perform procjobs.require_host_of_mail();
  if not procjobs.owns_recipient(a_person, a_recipient) then
    raise exception '% may not send anything to recipient %', a_person, coalesce(a_recipient::text, 'null')
      using errcode = 'PJ024',
            detail = 'no such row of this owner in procjobs.host_recipients',
            hint = 'procjobs.host_recipients.owner_id says whose a recipient is.';
  end if;
  v_id := procjobs.enqueue_notification_job($1, $3, $4, $5, $6, $7, $2, $8);
  return query
    select n.id::text, n.id, n.job_id
    from procjobs.notification_jobs n
    where n.id = v_id;
end
$$;
comment on function procjobs.submit_notification(uuid, jsonb, uuid, uuid, text, text, text, integer, uuid) is
  'enqueue_notification_job for clients that answer somebody: the notification''s id (job_id), the left side of its mail''s '
  'Message-ID, and its queue job. requested_by: only for a recipient of this person, else PJ024. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.declare_notifications()
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.register_sql_task(
    'SEND_NOTIFICATION', 'procjobs.enqueue_notification_job', max_attempts => 3, backoff_base => '1 minute',
    timeout => '1 minute')
$$;
comment on function procjobs.declare_notifications() is
  'Registers the SQL task SEND_NOTIFICATION, which requests a notification. migrate calls it. Returns whether it is new or changed.';

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
