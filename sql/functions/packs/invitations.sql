-- Invitations: made, sent again and withdrawn by the application, accepted by whoever reads the mail.
-- Owns:        procjobs.pending_invites.
-- Lock order:  notification_jobs, then pending_invites, then what host_add_member locks. A letter is requested under its invitation's
--              lock, which waits for nobody: its rows are new.
-- Secrets are compared by SHA-256; people, organizations and members are the application's (sql/functions/host.sql).

create or replace function procjobs.check_may_give(p_person uuid, p_organization uuid, p_role text, p_invite uuid default null)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_roles text[] := procjobs.host_invitable_roles(p_person, p_organization);
begin
  if p_role is null or p_role <> all (coalesce(v_roles, '{}')) then
    raise exception '%', case
        when p_invite is not null then format('%s may not change the invitation %s', p_person, p_invite)
        else format('%s may not invite anybody as %s there', coalesce(p_person::text, 'null'), coalesce(p_role, 'null'))
      end
      using errcode = 'PJ051',
            detail = format('organization %s, role %s, roles that may be given: %s', coalesce(p_organization::text, 'null'),
              coalesce(p_role, 'null'), coalesce(nullif(array_to_string(v_roles, ', '), ''), 'none')),
            hint = 'procjobs.host_invitable_roles says who may invite, and as what.';
  end if;
end
$$;
comment on function procjobs.check_may_give(uuid, uuid, text, uuid) is
  'Raises PJ051 unless the person may give that role there, in a new invitation or, to change it, in one that exists.';

create or replace function procjobs.check_invite(p_organization uuid, p_email text, p_role text, p_inviter uuid)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[];
begin
  perform procjobs.require_host('host_people', 'host_organizations', 'host_memberships', 'host_find_person', 'host_invitable_roles',
    'host_add_member', 'host_register_url');
  perform procjobs.check_may_give(p_inviter, p_organization, p_role);
  v_problems := procjobs.letter_problems('invitation', '{}', null, null, coalesce(btrim(p_email), ''), 'normal');
  if cardinality(v_problems) > 0 then
    raise exception 'nobody can be invited: %', v_problems[1]
      using errcode = 'PJ050', detail = array_to_string(v_problems, E'\n'), hint = 'Write one address: name@example.com.';
  end if;
  if exists (
    select
    from procjobs.host_memberships m
    where m.organization_id = p_organization
      and m.person_id = procjobs.host_find_person(btrim(p_email))
  ) then
    raise exception '% is a member already', btrim(p_email)
      using errcode = 'PJ054',
            detail = format('organization %s', p_organization),
            hint = 'Change the role in the application; nobody needs an invitation for that.';
  end if;
end
$$;
comment on function procjobs.check_invite(uuid, text, text, uuid) is
  'Raises PJ051 unless the person may give that role there, PJ050 for what is no address, PJ054 for who is a member already.';

create or replace function procjobs.write_invite(p_invite procjobs.pending_invites)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_content jsonb;
  v_letter uuid;
begin
  select jsonb_build_object(
    'secret_path', '/invite/', 'invite_id', p_invite.id, 'organization', o.name, 'role', p_invite.role,
    'inviter', coalesce((select p.name from procjobs.host_people p where p.id = p_invite.invited_by), 'Somebody'),
    'expires_at', p_invite.expires_at, 'zone', coalesce(o.timezone, 'UTC'))
  into v_content
  from procjobs.host_organizations o
  where o.id = p_invite.organization_id;
  if v_content is not null then
    v_letter := procjobs.enqueue_letter(
      'invitation', v_content, address => p_invite.email,
      address_name => (select p.name from procjobs.host_people p where p.id = procjobs.host_find_person(p_invite.email)));
  end if;
  update procjobs.pending_invites i
  set status = case when v_letter is null then 'FAILED' else 'PENDING' end,
      error = case when v_letter is null then 'the organization is gone' end,
      notification_id = v_letter,
      updated_at = procjobs.clock()
  where i.id = p_invite.id;
  return v_letter;
end
$$;
comment on function procjobs.write_invite(procjobs.pending_invites) is
  'Requests the mail of an invitation; links in earlier ones are dead from now on. Returns the letter.';

create or replace function procjobs.put_invite(
  p_organization uuid,
  p_email text,
  p_role text,
  p_inviter uuid,
  p_expires_in interval,
  out invite_id uuid,
  out created boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_invite procjobs.pending_invites;
begin
  loop
    update procjobs.pending_invites i
    set status = 'EXPIRED', updated_at = v_now
    where i.organization_id = p_organization
      and i.email_key = procjobs.normalize_address(p_email)
      and i.status in ('PENDING', 'SENT', 'FAILED')
      and i.expires_at <= v_now;
    insert into procjobs.pending_invites as i (organization_id, email, role, invited_by, created_at, updated_at, expires_at)
    values (p_organization, btrim(p_email), p_role, p_inviter, v_now, v_now, v_now + p_expires_in)
    on conflict (organization_id, email_key) where status in ('PENDING', 'SENT', 'FAILED') do nothing
    returning i.* into v_invite;
    created := found;
    if not created then
      select i.* into v_invite
      from procjobs.pending_invites i
      where i.organization_id = p_organization
        and i.email_key = procjobs.normalize_address(p_email)
        and i.status in ('PENDING', 'SENT', 'FAILED')
      for update;
    end if;
    exit when found;  -- else it was accepted or withdrawn just now
  end loop;

  if v_invite.role <> p_role then
    raise exception '% is invited already, as %', v_invite.email, v_invite.role
      using errcode = 'PJ053',
            detail = format('invite %s of %s, asked for again as %s', v_invite.id, v_invite.created_at, p_role),
            hint = format('Revoke it first: select procjobs.revoke_invite(%L).', v_invite.id);
  end if;
  invite_id := v_invite.id;
  if created then
    perform procjobs.write_invite(v_invite);
  elsif v_invite.status = 'FAILED' then
    perform procjobs.resend_invite(v_invite.id, expires_in => p_expires_in);
  end if;
end
$$;
comment on function procjobs.put_invite(uuid, text, text, uuid, interval) is
  'Writes an invitation that was checked, and its mail. If one is open for that address: that one, sent again if its mail had failed.';

create or replace function procjobs.submit_invite(
  organization uuid,
  email text,
  role text,
  invited_by uuid,
  expires_in interval default '30 days'
)
returns table (invite_id uuid, created boolean, message_id text, job_id uuid, queue_job_id bigint)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform procjobs.check_invite_span($5);
  perform procjobs.check_invite($1, $2, $3, $4);
  select p.invite_id, p.created into invite_id, created from procjobs.put_invite($1, $2, $3, $4, $5) p;
  select n.id::text, n.id, n.job_id
  into message_id, job_id, queue_job_id
  from procjobs.pending_invites i
  join procjobs.notification_jobs n on n.id = i.notification_id
  where i.id = submit_invite.invite_id;
  return next;
end
$$;
comment on function procjobs.submit_invite(uuid, text, text, uuid, interval) is
  'create_invite for clients that answer somebody: the invitation, whether it is new, and its mail: the letter''s id (job_id), the left side '
  'of its Message-ID, and its queue job; null where the mail of one that was open already is forgotten. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.create_invite(
  organization uuid,
  email text,
  role text,
  invited_by uuid,
  expires_in interval default '30 days'
)
returns uuid
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.invite_id from procjobs.submit_invite($1, $2, $3, $4, $5) s
$$;
comment on function procjobs.create_invite(uuid, text, text, uuid, interval) is
  'Invites an address into an organization, in the caller''s transaction: the invitation and the job of its mail. Returns its id; where one '
  'is open for that address and role, its id. Raises PJ050, PJ051, PJ053 (open with another role), PJ054 (a member). '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.check_invite_span(p_expires_in interval)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_expires_in is null or p_expires_in <= interval '0' or p_expires_in > interval '366 days' then
    raise exception 'an invitation cannot be open for %', coalesce(p_expires_in::text, 'null')
      using errcode = 'PJ050',
            detail = format('expires_in %s', coalesce(p_expires_in::text, 'null')),
            hint = 'Give a span of up to a year, e.g. 30 days.';
  end if;
end
$$;
comment on function procjobs.check_invite_span(interval) is 'Raises PJ050 unless an invitation may be open that long.';

create or replace function procjobs.invite_each(
  p_organization uuid,
  p_emails text[],
  p_role text,
  p_inviter uuid,
  p_expires_in interval
)
returns table (email text, invite_id uuid, outcome text, problem text, n bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_created boolean;
begin
  for email, n in
    select (array_agg(btrim(e.address) order by e.n))[1], min(e.n)
    from unnest(p_emails) with ordinality e (address, n)
    group by procjobs.normalize_address(e.address)
    order by procjobs.normalize_address(e.address) collate "C"
  loop
    invite_id := null;
    problem := null;
    begin
      perform procjobs.check_invite(p_organization, email, p_role, p_inviter);
      select p.invite_id, p.created into invite_id, v_created
      from procjobs.put_invite(p_organization, email, p_role, p_inviter, p_expires_in) p;
      outcome := case when v_created then 'created' else 'open' end;
    exception when sqlstate 'PJ050' or sqlstate 'PJ053' or sqlstate 'PJ054' then
      outcome := case sqlstate when 'PJ050' then 'invalid' when 'PJ053' then 'other_role' else 'member' end;
      problem := sqlerrm;
    end;
    return next;
  end loop;
end
$$;
comment on function procjobs.invite_each(uuid, text[], text, uuid, interval) is
  'Invites addresses in one order, whoever calls, since two that invite the same people at once would wait for each other otherwise. '
  'n: which of the addresses it was.';

create or replace function procjobs.create_invites(
  organization uuid,
  emails text[],
  role text,
  invited_by uuid,
  expires_in interval default '30 days'
)
returns table (email text, invite_id uuid, outcome text, problem text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform procjobs.check_invite_span(create_invites.expires_in);
  if cardinality(create_invites.emails) > 1000 then
    raise exception 'too many addresses at once'
      using errcode = 'PJ050', detail = format('%s addresses', cardinality(create_invites.emails)), hint = 'Give at most 1000 a call.';
  end if;
  return query
    select e.email, e.invite_id, e.outcome, e.problem
    from procjobs.invite_each(
      create_invites.organization, create_invites.emails, create_invites.role, create_invites.invited_by, create_invites.expires_in) e
    order by e.n;
end
$$;
comment on function procjobs.create_invites(uuid, text[], text, uuid, interval) is
  'Invites up to 1000 addresses as create_invite does, with an answer for each, in the order given: created, open (there already), other_role, '
  'member, invalid. Raises PJ051. Definer: the producer role has no rights on tables.';

create or replace function procjobs.lock_invite(p_invite uuid, p_by uuid)
returns procjobs.pending_invites
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_invite procjobs.pending_invites;
begin
  select i.* into v_invite from procjobs.pending_invites i where i.id = p_invite for update;
  if not found then
    raise exception 'there is no invitation %', coalesce(p_invite::text, 'null')
      using errcode = 'PJ052',
            detail = 'no such row in procjobs.pending_invites',
            hint = 'select id, email, status from procjobs.list_invites() lists them.';
  end if;
  if p_by is not null then
    perform procjobs.require_host('host_invitable_roles');
    perform procjobs.check_may_give(p_by, v_invite.organization_id, v_invite.role, p_invite);
  end if;
  return v_invite;
end
$$;
comment on function procjobs.lock_invite(uuid, uuid) is
  'The invitation, locked. Raises PJ052 if there is none, PJ051 if p_by (null: nobody asks) may not give its role.';

create or replace function procjobs.resend_invite(invite uuid, resent_by uuid default null, expires_in interval default '30 days')
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := procjobs.clock();
  v_invite procjobs.pending_invites;
begin
  perform procjobs.check_invite_span(resend_invite.expires_in);
  v_invite := procjobs.lock_invite(resend_invite.invite, resend_invite.resent_by);
  if v_invite.status in ('ACCEPTED', 'REVOKED') or exists (
    select
    from procjobs.pending_invites other
    where other.organization_id = v_invite.organization_id
      and other.email_key = v_invite.email_key
      and other.id <> v_invite.id
      and other.status in ('PENDING', 'SENT', 'FAILED')
  ) then
    raise exception 'the invitation % cannot be sent again', v_invite.id
      using errcode = 'PJ053',
            detail = case when v_invite.status in ('ACCEPTED', 'REVOKED') then 'status ' || v_invite.status else 'a newer one is open' end,
            hint = 'select * from procjobs.list_invites() shows what is open; procjobs.create_invite makes another.';
  end if;
  update procjobs.pending_invites i
  set status = 'PENDING', attempts = 0, error = null, expires_at = v_now + resend_invite.expires_in
  where i.id = v_invite.id
  returning i.* into v_invite;
  perform procjobs.write_invite(v_invite);
  return v_invite.expires_at;
end
$$;
comment on function procjobs.resend_invite(uuid, uuid, interval) is
  'Sends an invitation again, with a new link, fresh tries and a new expiry, which is returned; links that were sent before are dead. '
  'Raises PJ053 for one that was accepted or revoked. Definer: the producer role has no rights on tables.';

create or replace function procjobs.revoke_invite(invite uuid, revoked_by uuid default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_invite procjobs.pending_invites := procjobs.lock_invite(invite, revoked_by);
begin
  if v_invite.status = 'ACCEPTED' then
    raise exception 'the invitation % was accepted already', v_invite.id
      using errcode = 'PJ053',
            detail = format('by %s, %s', v_invite.accepted_by, v_invite.accepted_at),
            hint = 'Remove the member in the application.';
  end if;
  update procjobs.pending_invites i
  set status = 'REVOKED', updated_at = procjobs.clock()
  where i.id = v_invite.id
    and i.status <> 'REVOKED';
  return found;
end
$$;
comment on function procjobs.revoke_invite(uuid, uuid) is
  'Withdraws an invitation: its links are dead, and a mail that waits does not leave any more. False if it was so already; raises PJ053 when '
  'it was accepted. Definer: the producer role has no rights on tables.';

create or replace function procjobs.list_invites(
  organization uuid default null,
  in_status text default null,
  max_rows integer default 50,
  invite uuid default null
)
returns table (
  id uuid, organization_id uuid, email text, role text, invited_by uuid, status text, attempts integer, max_attempts integer,
  last_attempt timestamptz, error text, created_at timestamptz, updated_at timestamptz, expires_at timestamptz, accepted_at timestamptz,
  accepted_by uuid, notification_id uuid
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if upper(list_invites.in_status) not in ('PENDING', 'SENT', 'ACCEPTED', 'FAILED', 'EXPIRED', 'REVOKED') then
    raise exception 'invitations have no status %', quote_literal(list_invites.in_status)
      using errcode = 'PJ009',
            detail = 'nothing would be listed, whatever there is',
            hint = 'One of PENDING, SENT, ACCEPTED, FAILED, EXPIRED, REVOKED, in any case of letters.';
  end if;
  return query
    select v.*
    from procjobs.invites v
    where (list_invites.organization is null or v.organization_id = list_invites.organization)
      and (list_invites.in_status is null or v.status = upper(list_invites.in_status))
      and (list_invites.invite is null or v.id = list_invites.invite)
    order by v.created_at desc, v.id
    limit list_invites.max_rows;
end
$$;
comment on function procjobs.list_invites(uuid, text, integer, uuid) is 'procjobs.invites, newest first: of an organization, in a state, or one by its id.';
