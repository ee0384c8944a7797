-- The mail of an invitation: whether it is still wanted, how the invitation follows it, and what runs by schedule.
-- Owns:        procjobs.pending_invites, together with invitations.sql; the schedules process_pending_invites and expire_invites.
-- Lock order:  procrastinate_jobs, notification_jobs, then pending_invites, then letter_secrets.

create or replace function procjobs.invite_letter_fault(p_invite procjobs.pending_invites)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_invite.id is null then 'the invitation was sent anew, or is gone'
    when p_invite.status not in ('PENDING', 'SENT', 'FAILED') then 'the invitation is ' || p_invite.status
    when p_invite.expires_at <= procjobs.clock() then 'the invitation has expired'
  end
$$;
comment on function procjobs.invite_letter_fault(procjobs.pending_invites) is
  'Why the letter of an invitation is not wanted any more; null if it is. A row of nulls: no invitation has this letter.';

create or replace function procjobs.invite_obstacle(p_job procjobs.notification_jobs)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_invite procjobs.pending_invites;
begin
  if p_job.template is distinct from 'invitation' then
    return null;
  end if;
  select i.* into v_invite from procjobs.pending_invites i where i.notification_id = p_job.id;
  return procjobs.invite_letter_fault(v_invite);
end
$$;
comment on function procjobs.invite_obstacle(procjobs.notification_jobs) is
  'Why an invitation''s mail that is about to be tried is not wanted any more; null if it is, and for all other mails. '
  'keep_letter_secret looks again, with the invitation locked.';

create or replace function procjobs.open_invite_letter(p_notification uuid)
returns table (opens uuid, fault text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_invite procjobs.pending_invites;
begin
  select i.* into v_invite from procjobs.pending_invites i where i.notification_id = p_notification for update;
  opens := v_invite.id;
  fault := coalesce(
    procjobs.invite_letter_fault(v_invite),
    case when v_invite.attempts > v_invite.max_attempts then format('it was tried %s times', v_invite.max_attempts) end);
  return next;
end
$$;
comment on function procjobs.open_invite_letter(uuid) is
  'The invitation whose letter this is, locked, and why it is not to be sent any more (null: it is).';

create or replace function procjobs.follow_invitation()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
begin
  update procjobs.pending_invites i
  set status = case new.status when 'sent' then 'SENT' when 'failed' then 'FAILED' when 'cancelled' then 'FAILED' else 'PENDING' end,
      -- Whoever lets a dead letter run again gives it fresh tries.
      attempts = case
        when new.status = 'pending' and old.status in ('failed', 'cancelled') then 0
        when new.status = 'processing' then i.attempts + 1
        else i.attempts
      end,
      last_attempt = case when new.status = 'processing' then v_now else i.last_attempt end,
      error = case when new.status = 'sent' then null else coalesce(new.last_error, i.error) end,
      updated_at = v_now
  where i.notification_id = new.id
    and i.status in ('PENDING', 'SENT', 'FAILED');
  return null;
end
$$;
comment on function procjobs.follow_invitation() is
  'Trigger: an invitation follows the delivery of its mail. Definer: whoever moves a notification needs no rights here.';

create or replace trigger follow_invitation
after update of status on procjobs.notification_jobs
for each row
when (new.template = 'invitation' and new.status is distinct from old.status)
execute function procjobs.follow_invitation();
comment on trigger follow_invitation on procjobs.notification_jobs is 'An invitation whose mail was tried, sent, or given up.';

create or replace function procjobs.send_invite(invite uuid)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_invite procjobs.pending_invites;
begin
  select i.* into v_invite
  from procjobs.pending_invites i
  where i.id = invite
    and i.status = 'PENDING'
    and i.expires_at > procjobs.clock()
  for update skip locked;
  -- In a statement of its own, which sees what was committed before the lock was there.
  if v_invite.id is null or exists (
    select
    from procjobs.notification_jobs n
    join public.procrastinate_jobs j on j.id = n.job_id
    where n.id = v_invite.notification_id
      and j.status in ('todo', 'doing')
  ) then
    return null;
  end if;
  if v_invite.attempts >= v_invite.max_attempts then
    update procjobs.pending_invites i
    set status = 'FAILED', error = format('it was tried %s times', i.max_attempts), updated_at = procjobs.clock()
    where i.id = invite;
    return null;
  end if;
  return procjobs.write_invite(v_invite);
exception when sqlstate 'PJ023' then
  update procjobs.pending_invites i
  set status = 'FAILED', error = sqlerrm, updated_at = procjobs.clock()
  where i.id = invite;
  return null;
end
$$;
comment on function procjobs.send_invite(uuid) is
  'Requests the mail of a PENDING invitation that has none under way; null if there is nothing to send. The task SEND_INVITE_EMAIL. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.process_pending_invites()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.mark_expired_invites();
  return (
    select count(procjobs.send_invite(i.id))
    from (
      select i.id
      from procjobs.pending_invites i
      where i.status = 'PENDING'
        and not exists (
          select
          from procjobs.notification_jobs n
          join public.procrastinate_jobs j on j.id = n.job_id
          where n.id = i.notification_id
            and j.status in ('todo', 'doing')
        )
      order by i.created_at
      limit 500
    ) i
  );
end
$$;
comment on function procjobs.process_pending_invites() is
  'Every two minutes: PENDING invitations without a mail under way get one (inserted by hand, or their job was lost), those whose time is over '
  'become EXPIRED. Returns how many mails were requested, at most 500 a call. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.mark_expired_invites()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  with over as (
    select i.id
    from procjobs.pending_invites i
    where i.status in ('PENDING', 'SENT', 'FAILED')
      and i.expires_at <= procjobs.clock()
    order by i.id
    limit 10000
    for update skip locked
  )
  update procjobs.pending_invites i
  set status = 'EXPIRED', updated_at = procjobs.clock()
  from over
  where i.id = over.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.mark_expired_invites() is 'Open invitations whose time is over become EXPIRED. Returns how many, at most 10000.';

create or replace function procjobs.expire_invites(keep interval default '30 days')
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  if keep is null or keep < interval '0' then
    raise exception 'expired invitations cannot be kept for %', coalesce(keep::text, 'null')
      using errcode = 'PJ009',
            detail = 'less than nothing would remove those that are open',
            hint = 'select procjobs.expire_invites(''30 days'');';
  end if;
  perform procjobs.mark_expired_invites();
  with old as (
    delete from procjobs.pending_invites i
    where i.id in (
      select i.id
      from procjobs.pending_invites i
      where i.status <> 'ACCEPTED'
        and i.expires_at <= procjobs.clock() - keep
      order by i.id
      limit 10000
      for update skip locked
    )
    returning i.id
  ),
  secrets as (
    delete from procjobs.letter_secrets s using old where s.opens = old.id
  )
  select count(*) into v_count from old;
  return v_count;
end
$$;
comment on function procjobs.expire_invites(interval) is
  'Daily: removes invitations that expired that long ago without being accepted, and the hashes of their links. Returns how many, at most 10000 a '
  'call. PJ009: a negative span. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.declare_invitations()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.register_sql_task(t.name, t.routine, queue => 'invitations', max_attempts => 3, backoff_base => '1 minute', timeout => '10 minutes')
  from (values
    ('procjobs.process_pending_invites', 'procjobs.process_pending_invites'),
    ('procjobs.expire_invites', 'procjobs.expire_invites'),
    ('SEND_INVITE_EMAIL', 'procjobs.send_invite')
  ) as t (name, routine);
  return (
    select count(*) from procjobs.declare_schedules('pack', '[
      {"name": "process_pending_invites", "task": "procjobs.process_pending_invites", "cron": "*/2 * * * *",
       "description": "Invitations without a mail under way get one"},
      {"name": "expire_invites", "task": "procjobs.expire_invites", "cron": "0 2 * * *", "group": "cleanup",
       "description": "Invitations that expired 30 days ago"}
    ]') d where d.changed
  );
end
$$;
comment on function procjobs.declare_invitations() is
  'Registers the SQL tasks of invitations and makes their schedules. migrate calls it. Returns how many schedules are new or changed.';
