-- Suppression: addresses that do not exist are not written to again.
-- Owns:        procjobs.suppressed_addresses.
-- Lock order:  notification_jobs, then suppressed_addresses.

create or replace function procjobs.normalize_address(p_address text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select lower(btrim(p_address))
$$;
comment on function procjobs.normalize_address(text) is
  'The form in which addresses are compared: in lower case, since no mail server in use minds the case.';

create or replace function procjobs.is_hard_bounce(p_stage text, p_code integer, p_reply text)
returns boolean
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select p_stage is not distinct from 'rcpt'
    and p_code between 500 and 599
    and case
      when r.enhanced is not null then r.enhanced in ('5.1.1', '5.1.2', '5.1.3', '5.1.6', '5.1.10', '5.2.1')
      -- Of servers that write no code the words say whether it is we who are refused: a relay that does not know us says 550 too.
      else p_code in (550, 551, 553) and coalesce(p_reply, '') !~* (
        '\m(relay(ing)?|auth(entication|enticate|enticated|orized)?|denied|permitted|allowed|prohibited|policy|spam|block(ed|list|listed)?|'
        'black(list|listed)|sender|rcpthosts|reputation|spf|dkim|dmarc|rbl|dnsbl|helo|ehlo)\M')
    end
  from (select substring(p_reply from '(?<![0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?!\.?[0-9])') as enhanced) r
$$;
comment on function procjobs.is_hard_bounce(text, integer, text) is
  'Whether a reply to RCPT means that the mailbox or the domain does not exist. What is refused for its content, by policy, '
  'for want of room, or because the server does not relay for us is none.';

create or replace function procjobs.note_bounce(
  p_notification uuid,
  p_address text,
  p_stage text,
  p_code integer,
  p_reply text
)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.suppressed_addresses (address, since, reason, code, reply, notification_id, added_by)
  select procjobs.normalize_address(p_address), procjobs.clock(), 'bounced', p_code, left(p_reply, 2000), p_notification, session_user
  where procjobs.is_hard_bounce(p_stage, p_code, p_reply)
  on conflict (address) do nothing
$$;
comment on function procjobs.note_bounce(uuid, text, text, integer, text) is
  'Puts an address on the list of suppressed ones if the mail server''s reply means that it does not exist.';

create or replace function procjobs.suppression_of(p_address text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('the address is suppressed since %s: %s',
    to_char(s.since at time zone 'UTC', 'YYYY-MM-DD'), concat_ws(' ', s.reason, s.code, s.reply))
  from procjobs.suppressed_addresses s
  where s.address = procjobs.normalize_address(p_address)
$$;
comment on function procjobs.suppression_of(text) is 'Why no mail goes to an address, in a sentence; null if it does.';

create or replace function procjobs.suppress_address(address text, reason text default 'added by hand')
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_address text := procjobs.normalize_address(suppress_address.address);
begin
  if v_address is null or procjobs.mail_address_problem(v_address) is not null then
    raise exception 'address % is not an e-mail address', coalesce(quote_literal(suppress_address.address), 'null')
      using errcode = 'PJ009',
            detail = format('address: %s', coalesce(quote_literal(suppress_address.address), 'null')),
            hint = 'Write it as name@domain.';
  end if;
  insert into procjobs.suppressed_addresses as s (address, since, reason, added_by)
  values (v_address, procjobs.clock(), left(coalesce(nullif(btrim(suppress_address.reason), ''), 'added by hand'), 2000), session_user)
  on conflict on constraint suppressed_addresses_pkey do nothing;
  return found;
end
$$;
comment on function procjobs.suppress_address(text, text) is
  'No mail goes to the address any more. False if that was so already. Definer: the admin role has no rights on tables.';

create or replace function procjobs.unsuppress_address(address text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from procjobs.suppressed_addresses s where s.address = procjobs.normalize_address(unsuppress_address.address);
  return found;
end
$$;
comment on function procjobs.unsuppress_address(text) is
  'Mail goes to the address again; what ended meanwhile stays ended. False if it was not suppressed. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.list_suppressed_addresses(matching text default null, max_rows integer default 100)
returns table (address text, since timestamptz, reason text, code integer, reply text, notification_id uuid, added_by text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.address, s.since, s.reason, s.code, s.reply, s.notification_id, s.added_by
  from procjobs.suppressed_addresses s
  where matching is null
    or strpos(s.address, procjobs.normalize_address(matching)) > 0
  order by s.since desc, s.address
  limit max_rows
$$;
comment on function procjobs.list_suppressed_addresses(text, integer) is
  'Addresses to which no mail goes, the newest first; those with the text in them if one is given. '
  'Definer: the reader role has no rights on tables.';
