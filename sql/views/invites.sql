-- Invitations, without anything that would open one.

create view procjobs.invites as
select
  i.id,
  i.organization_id,
  case
    when (select procjobs.may_see_arguments()) then i.email
    else left(i.email, 1) || '...' || substring(i.email from '@.*$')
  end as email,
  i.role,
  i.invited_by,
  case
    when i.status in ('PENDING', 'SENT', 'FAILED') and i.expires_at <= procjobs.clock() then 'EXPIRED'
    else i.status
  end as status,
  i.attempts,
  i.max_attempts,
  i.last_attempt,
  case when (select procjobs.may_see_arguments()) then i.error end as error,
  i.created_at,
  i.updated_at,
  i.expires_at,
  i.accepted_at,
  i.accepted_by,
  i.notification_id
from procjobs.pending_invites i;
comment on view procjobs.invites is
  'Invitations into organizations: select * from procjobs.invites where status = ''FAILED''. No link can be made from what is here.';
comment on column procjobs.invites.id is 'What create_invite returned.';
comment on column procjobs.invites.organization_id is 'Where to: host_organizations.id.';
comment on column procjobs.invites.email is 'Who is invited; to members of procjobs_admin only, others see its first letter and the domain.';
comment on column procjobs.invites.role is 'What the person becomes there.';
comment on column procjobs.invites.invited_by is 'Who invites: host_people.id.';
comment on column procjobs.invites.status is 'PENDING, SENT, ACCEPTED, FAILED, EXPIRED, REVOKED.';
comment on column procjobs.invites.attempts is 'Tries to deliver the mail, since it was last sent by hand.';
comment on column procjobs.invites.max_attempts is 'Tries before it is FAILED.';
comment on column procjobs.invites.last_attempt is 'When the last try began.';
comment on column procjobs.invites.error is 'Why the last try did not succeed; to members of procjobs_admin only.';
comment on column procjobs.invites.created_at is 'When it was requested.';
comment on column procjobs.invites.updated_at is 'When it last changed.';
comment on column procjobs.invites.expires_at is 'Until when it can be accepted.';
comment on column procjobs.invites.accepted_at is 'When it was accepted.';
comment on column procjobs.invites.accepted_by is 'By whom: host_people.id.';
comment on column procjobs.invites.notification_id is 'The letter that counts, in notification_jobs.';
