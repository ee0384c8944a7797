-- What the link in an invitation's mail leads to: a look that changes nothing, and the acceptance.
-- Owns:        nothing; writes procjobs.pending_invites (invitations.sql).
-- Lock order:  pending_invites, then what host_add_member locks.
-- Both take the SHA-256 of what the link ends in: select * from procjobs.peek_invite(sha256('...')). The secret itself never comes here.

create or replace function procjobs.peek_invite(token_hash bytea, person uuid default null)
returns table (
  state text, invite_id uuid, organization_id uuid, organization text, inviter text, email text, role text,
  expires_at timestamptz, accepted_at timestamptz, person_id uuid, person_name text, timezone text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_invite procjobs.pending_invites;
  v_letter uuid;
  v_email text;
  v_person uuid;
begin
  perform procjobs.require_host('host_people', 'host_organizations', 'host_memberships', 'host_find_person');
  select s.notification_id, s.opens into v_letter, invite_id
  from procjobs.letter_secrets s
  where s.hash = peek_invite.token_hash;
  select i.* into v_invite from procjobs.pending_invites i where i.id = invite_id;
  if not found then
    state := 'not_found';
    invite_id := null;
    return next;
    return;
  end if;

  email := v_invite.email;
  role := v_invite.role;
  expires_at := v_invite.expires_at;
  accepted_at := v_invite.accepted_at;
  select o.id, o.name, o.timezone into organization_id, organization, timezone
  from procjobs.host_organizations o
  where o.id = v_invite.organization_id;
  select p.name into inviter from procjobs.host_people p where p.id = v_invite.invited_by;
  select p.id, p.name, procjobs.normalize_address(p.email) into v_person, person_name, v_email
  from procjobs.host_people p
  where p.id = coalesce(peek_invite.person, procjobs.host_find_person(v_invite.email));
  person_id := v_person;

  state := case
    when v_invite.status = 'REVOKED' then 'revoked'
    when v_invite.status = 'ACCEPTED' and v_invite.accepted_by = v_person then 'already_accepted'
    when v_invite.status = 'ACCEPTED' then 'accepted_by_other'
    when v_invite.notification_id is distinct from v_letter then 'replaced'
    when v_invite.status = 'EXPIRED' or v_invite.expires_at <= procjobs.clock() then 'expired'
    when organization_id is null then 'gone'
    when v_person = peek_invite.person and v_email is distinct from v_invite.email_key then 'other_address'
    when v_person is null then 'unknown_person'
    when exists (
      select from procjobs.host_memberships m where m.organization_id = v_invite.organization_id and m.person_id = v_person
    ) then 'already_member'
    else 'open'
  end;
  return next;
end
$$;
comment on function procjobs.peek_invite(bytea, uuid) is
  'What the link of an invitation leads to; changes nothing. state: open, unknown_person (nobody has the address: register first), already_member, '
  'already_accepted, accepted_by_other, expired, revoked, replaced (sent anew since), other_address (person has another than the invited one), gone '
  '(the organization), not_found. person: who is logged in; null: whoever has the address. Definer: the producer role has no rights on tables.';

create or replace function procjobs.accept_invite(token_hash bytea, person uuid default null)
returns table (state text, invite_id uuid, organization_id uuid, person_id uuid, role text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := procjobs.clock();
begin
  select p.state, p.invite_id, p.organization_id, p.person_id, p.role into state, invite_id, organization_id, person_id, role
  from procjobs.peek_invite(accept_invite.token_hash, accept_invite.person) p;
  if state not in ('open', 'already_member') then
    return next;
    return;
  end if;

  update procjobs.pending_invites i
  set status = 'ACCEPTED', accepted_at = v_now, accepted_by = accept_invite.person_id, error = null, updated_at = v_now
  where i.id = accept_invite.invite_id
    and i.status in ('PENDING', 'SENT', 'FAILED')
    and i.expires_at > v_now
    and i.notification_id = (select s.notification_id from procjobs.letter_secrets s where s.hash = accept_invite.token_hash);
  if found then
    state := case when procjobs.host_add_member(organization_id, person_id, role) then 'accepted' else 'already_member' end;
  else  -- somebody was faster
    select p.state into state from procjobs.peek_invite(accept_invite.token_hash, accept_invite.person) p;
  end if;
  return next;
end
$$;
comment on function procjobs.accept_invite(bytea, uuid) is
  'Accepts an invitation, once, and adds the member, in one transaction. state: accepted, or as procjobs.peek_invite says why not; already_member '
  'uses it up, too, and leaves the role as it is. person: who is logged in, whose address must be the invited one; null: whoever has that address. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.invite_register_url(token_hash bytea, continue_at text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_email text;
begin
  perform procjobs.require_host('host_register_url');
  select p.email into v_email from procjobs.peek_invite(token_hash) p where p.state = 'unknown_person';
  return case when v_email is not null then procjobs.host_register_url(v_email, continue_at) end;
end
$$;
comment on function procjobs.invite_register_url(bytea, text) is
  'Where somebody who was invited and has no account registers, going on to continue_at; null where that is not called for. '
  'Definer: the producer role has no rights on tables.';
