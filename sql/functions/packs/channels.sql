-- Channels: where a recipient is reached by each delivery method, and how much of that the delivery log shows.
-- Owns:        nothing. The addresses are the application's, in host_recipients.
-- Lock order:  reads only.

create or replace function procjobs.recipient_address(p_method text, p_recipient jsonb, p_content jsonb)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select nullif(btrim(case p_method
    when 'email' then p_recipient ->> 'email'
    when 'slack' then p_recipient ->> 'slack'
    when 'webhook' then p_recipient ->> 'webhook_url'
    when 'apprise' then p_content ->> 'target'
    else regexp_replace(regexp_replace(p_recipient ->> 'phone', '[[:space:]()./-]', '', 'g'), '^00', '+')
  end, E' \t\r\n'), '')
$$;
comment on function procjobs.recipient_address(text, jsonb, jsonb) is
  'Where a row of host_recipients is reached by a delivery method, numbers without spaces and brackets; null: nowhere. '
  'For apprise it is the target that the content names.';

create or replace function procjobs.address_source(p_method text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case p_method
    when 'email' then 'host_recipients.email is empty'
    when 'slack' then 'host_recipients.slack is a channel (C024BE91L, #ops) or a member (U024BE7LH)'
    when 'webhook' then 'host_recipients.webhook_url is https://host/path'
    when 'apprise' then 'content.target is the name of one of the workers'' apprise_targets'
    else 'host_recipients.phone is + and the number with its country code: +4670...'
  end
$$;
comment on function procjobs.address_source(text) is 'Where the address of a delivery method comes from, and its form.';

create or replace function procjobs.is_reachable(p_email text)
returns boolean
language sql
immutable
parallel safe
as $$
  select coalesce(btrim(p_email), '') <> ''
$$;
comment on function procjobs.is_reachable(text) is
  'Whether there is an address to write to. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.address_problem(p_method text, p_address text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- The address itself is not shown: errors go into logs.
  select case p_method
    when 'email' then case when p_address is null then 'has no e-mail address' end
    when 'slack' then case
      when p_address is null then 'has no Slack address'
      when p_address ~* '^https?:' then
        'has an incoming webhook''s URL for Slack address, which is a secret: name it in the workers'' slack_webhooks'
      when p_address !~ '^[#@]?[^[:space:][:cntrl:]#@,:;/<>&"'']{1,80}$' then 'has no usable Slack address'
    end
    when 'webhook' then case
      when p_address is null then 'has no webhook address'
      when length(p_address) > 2000 then 'has a webhook address of over 2000 characters'
      when p_address !~* '^https?://[^/?#@\\[:space:][:cntrl:]]+([/?#][^[:space:][:cntrl:]]*)?$' then
        'has a webhook address that is not http or https, or has a user in it'
    end
    when 'apprise' then case
      when p_address is null then 'content.target is missing: the name of one of the workers'' apprise_targets'
      when p_address !~ '^[A-Za-z0-9_.-]{1,80}$' then 'content.target is not a name'
    end
    else case
      when p_address is null then 'has no phone number'
      when p_address !~ '^\+[1-9][0-9]{6,14}$' then 'has a phone number without its country code, or of another form'
    end
  end
$$;
comment on function procjobs.address_problem(text, text) is
  'Why nothing can be sent to an address, in words that follow "the recipient"; null if something can.';

create or replace function procjobs.shown_address(p_method text, p_address text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case p_method
    when 'sms' then left(p_address, 3) || '...' || right(p_address, 3)
    when 'whatsapp' then left(p_address, 3) || '...' || right(p_address, 3)
    when 'webhook' then substring(p_address from '^[^:]+://[^/?#]+')
    else p_address
  end
$$;
comment on function procjobs.shown_address(text, text) is
  'What the delivery log keeps of an address: of a phone number the ends, of a webhook the host, since its path may be a secret.';

create or replace function procjobs.notification_request(p_job procjobs.notification_jobs)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'recipient_id', p_job.recipient_id,
    'group_id', p_job.group_id,
    'update_id', p_job.update_id,
    'created_at', p_job.created_at,
    'scheduled_for', p_job.scheduled_for
  )
$$;
comment on function procjobs.notification_request(procjobs.notification_jobs) is
  'What a webhook says of a notification beside its content: the same at every try.';
