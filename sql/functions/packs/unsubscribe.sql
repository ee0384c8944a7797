-- Unsubscribing: links that end one subscription, signed, so that nobody can end another's.
-- Owns:        procjobs.unsubscriptions, procjobs.secrets.
-- Lock order:  the application's own rows (host_mute), then unsubscriptions.
-- A link names its subscription and carries an HMAC-SHA-256 over it, rather than a random token that is stored: it is the same at
-- each try of a mail, costs no row, and is good for as long as the mail is kept, whatever became of the notification.

create or replace function procjobs.subscription_templates()
returns table (template text, by_group boolean, kind text)
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select v.template, v.by_group, v.kind
  from (values
    ('notification', true, null),
    ('digest', true, 'digests'),
    ('notices', false, 'summaries of your notices'),
    ('tips', false, 'tips'),
    ('reengagement', false, 'mails about what you missed'),
    ('event_reminder', false, 'reminders of events'),
    ('daily_report', false, 'daily reports')
  ) v (template, by_group, kind)
$$;
comment on function procjobs.subscription_templates() is
  'The letters that one can unsubscribe from: of a group, as far as by_group says so; else all of the kind, in words for people. '
  'What is not here has to arrive: invitations, invoices, payment reminders, alerts, reports that were asked for, welcomes.';

create or replace function procjobs.subscription_of(p_job procjobs.notification_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_template record;
  v_group uuid := p_job.group_id;
begin
  select t.by_group, t.kind into v_template from procjobs.subscription_templates() t where t.template = p_job.template;
  if not found then
    return null;
  end if;
  if v_template.by_group and p_job.recipient_id is not null then
    if v_group is null and p_job.update_id is not null then
      select u.group_id into v_group from procjobs.host_updates u where u.id = p_job.update_id;
    end if;
    if v_group is not null then
      return format('group %s %s', v_group, p_job.recipient_id);
    end if;
  end if;
  if v_template.kind is null then
    return null;
  end if;
  return format('kind %s %s', p_job.template,
    coalesce(p_job.recipient_id::text, p_job.person_id::text, procjobs.normalize_address(p_job.address)));
end
$$;
comment on function procjobs.subscription_of(procjobs.notification_jobs) is
  'What a notification belongs to: `group GROUP RECIPIENT` or `kind TEMPLATE ADDRESSEE`; null if nobody subscribes to it.';

create or replace function procjobs.hmac_sha256(p_key bytea, p_message bytea)
returns bytea
language sql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select sha256(
    string_agg(set_byte('\x00', 0, get_byte(k.key, i) # 92), '' order by i)
    || sha256(string_agg(set_byte('\x00', 0, get_byte(k.key, i) # 54), '' order by i) || p_message)
  )
  from (
    select s.short || decode(repeat('00', 64 - octet_length(s.short)), 'hex') as key
    from (select case when octet_length(p_key) > 64 then sha256(p_key) else p_key end as short) s
  ) k
  cross join generate_series(0, 63) i
$$;
comment on function procjobs.hmac_sha256(bytea, bytea) is 'HMAC with SHA-256 (RFC 2104), for which pgcrypto need not be installed.';

create or replace function procjobs.sign_subscription(p_subscription text)
returns text
language sql
stable
strict
set search_path = pg_catalog, pg_temp
as $$
  select translate(encode(m.message || procjobs.hmac_sha256(s.secret, m.message), 'base64'), E'+/=\n', '-_')
  from procjobs.secrets s
  cross join (select convert_to(p_subscription, 'UTF8') as message) m
  where s.name = 'unsubscribe'
$$;
comment on function procjobs.sign_subscription(text) is
  'The token of an unsubscribe link: the subscription and its HMAC-SHA-256, in base64url.';

create or replace function procjobs.read_subscription(p_token text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bytes bytea;
  v_message bytea;
  v_secret bytea;
begin
  if p_token is null or p_token !~ '^[A-Za-z0-9_-]+$' or length(p_token) not between 60 and 800 or length(p_token) % 4 = 1 then
    return null;
  end if;
  v_bytes := decode(translate(p_token, '-_', '+/') || repeat('=', (4 - length(p_token) % 4) % 4), 'base64');
  v_message := substring(v_bytes from 1 for octet_length(v_bytes) - 32);
  select s.secret into strict v_secret from procjobs.secrets s where s.name = 'unsubscribe';
  -- Hashes are compared, so that the time it takes says nothing about the signature.
  if sha256(substring(v_bytes from octet_length(v_bytes) - 31)) <> sha256(procjobs.hmac_sha256(v_secret, v_message)) then
    return null;
  end if;
  return convert_from(v_message, 'UTF8');
end
$$;
comment on function procjobs.read_subscription(text) is 'The subscription that a token names; null unless it was signed here.';

create or replace function procjobs.is_unsubscribed(p_subscription text)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := string_to_array(p_subscription, ' ');
begin
  if v_parts[1] = 'group' then
    return exists (
      select from procjobs.host_group_recipients m
      where m.group_id = v_parts[2]::uuid and m.recipient_id = v_parts[3]::uuid and m.muted_until = 'infinity'
    );
  end if;
  return exists (
    select from procjobs.unsubscriptions u where u.addressee = v_parts[3] and u.kind = v_parts[2]
  );
end
$$;
comment on function procjobs.is_unsubscribed(text) is
  'Whether a subscription was ended: the group is muted for ever, or the kind of mail is not wanted.';

create or replace function procjobs.find_subscription(token text)
returns table (scope text, what text, subscribed boolean, can_return boolean, recipient_name text, organization_name text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_subscription text := procjobs.read_subscription(find_subscription.token);
  v_parts text[] := string_to_array(v_subscription, ' ');
begin
  if v_subscription is null then
    return;
  end if;
  scope := v_parts[1];
  if scope = 'group' then
    perform procjobs.require_host('host_recipients', 'host_groups', 'host_group_recipients', 'host_organizations');
  end if;
  subscribed := not procjobs.is_unsubscribed(v_subscription);
  can_return := true;
  if scope = 'group' then
    select g.name, o.name into what, organization_name
    from procjobs.host_groups g
    left join procjobs.host_organizations o on o.id = g.organization_id
    where g.id = v_parts[2]::uuid;
    select r.name into recipient_name from procjobs.host_recipients r where r.id = v_parts[3]::uuid;
    can_return := exists (
      select from procjobs.host_group_recipients m where m.group_id = v_parts[2]::uuid and m.recipient_id = v_parts[3]::uuid
    );
    subscribed := subscribed and can_return;
  else
    select t.kind into what from procjobs.subscription_templates() t where t.template = v_parts[2];
    if v_parts[3] not like '%@%' then
      perform procjobs.require_host('host_recipients');
      select r.name into recipient_name from procjobs.host_recipients r where r.id = v_parts[3]::uuid;
      if not found and to_regclass('procjobs.host_people') is not null then
        select p.name into recipient_name from procjobs.host_people p where p.id = v_parts[3]::uuid;
      end if;
    end if;
  end if;
  return next;
end
$$;
comment on function procjobs.find_subscription(text) is
  'What the token of an unsubscribe link would end, in words, and whether it was ended; no row for a token that was not signed here. '
  'Changes nothing. Definer: whoever serves the page has no rights on tables.';

create or replace function procjobs.set_subscribed(p_token text, p_subscribed boolean)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := string_to_array(procjobs.read_subscription(p_token), ' ');
begin
  if v_parts is null then
    return;
  end if;
  if v_parts[1] = 'group' then
    perform procjobs.require_host('host_mute');
    perform procjobs.host_mute(v_parts[3]::uuid, v_parts[2]::uuid, case when not p_subscribed then timestamptz 'infinity' end);
  elsif p_subscribed then
    delete from procjobs.unsubscriptions u where u.addressee = v_parts[3] and u.kind = v_parts[2];
  else
    insert into procjobs.unsubscriptions (addressee, kind, at)
    values (v_parts[3], v_parts[2], procjobs.clock())
    on conflict (addressee, kind) do nothing;
  end if;
end
$$;
comment on function procjobs.set_subscribed(text, boolean) is 'Ends the subscription of a token, or takes that back; doing it twice is doing it once.';

create or replace function procjobs.unsubscribe(token text)
returns table (scope text, what text, subscribed boolean, can_return boolean, recipient_name text, organization_name text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.set_subscribed(unsubscribe.token, false);
  return query select f.* from procjobs.find_subscription(unsubscribe.token) f;
end
$$;
comment on function procjobs.unsubscribe(text) is
  'Ends the subscription of a link: the group is muted for ever, or mails of the kind are not sent any more, those that wait included. '
  'What find_subscription then says; no row for a token that was not signed here. Definer: whoever serves the page has no rights on tables.';

create or replace function procjobs.resubscribe(token text)
returns table (scope text, what text, subscribed boolean, can_return boolean, recipient_name text, organization_name text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.set_subscribed(resubscribe.token, true);
  return query select f.* from procjobs.find_subscription(resubscribe.token) f;
end
$$;
comment on function procjobs.resubscribe(text) is
  'Takes unsubscribe back. Definer: whoever serves the page has no rights on tables.';

create or replace function procjobs.delivery_obstacle(
  p_job procjobs.notification_jobs,
  p_address text
)
returns table (status text, reason text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_problem text := procjobs.address_problem(p_job.delivery_method, p_address);
  v_suppression text := case when p_job.delivery_method = 'email' then procjobs.suppression_of(p_address) end;
  v_untrue text := coalesce(procjobs.reminder_obstacle(p_job), procjobs.invite_obstacle(p_job));
begin
  if v_problem is not null then
    return query select 'failed'::text, format('the recipient is gone or %s any more', v_problem);
  elsif v_suppression is not null then
    return query select 'failed'::text, v_suppression;
  elsif procjobs.is_unsubscribed(procjobs.subscription_of(p_job)) then
    return query select 'cancelled'::text, 'the recipient has unsubscribed'::text;
  elsif v_untrue is not null then
    return query select 'cancelled'::text, v_untrue;
  end if;
end
$$;
comment on function procjobs.delivery_obstacle(procjobs.notification_jobs, text) is
  'Why a notification is not to be sent, and how it ends for that: the addressee is gone, the address suppressed, or it was unsubscribed '
  'from, a reminder is not true any more, or an invitation is over. No row if it may go.';
