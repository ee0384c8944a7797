-- Notice mails: notices of the application's inbox, several in one mail.
-- Owns:        procjobs.notification_email_queue.
-- Lock order:  notification_email_queue (skip locked), then procrastinate_jobs, then notification_jobs. The trigger at the end runs
--              under the lock of the mail, whose rows nobody else takes while it is under way.

create or replace function procjobs.queue_notification_email(
  person uuid,
  notification_ids uuid[],
  scheduled_for timestamptz default null
)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_ids uuid[] := array(select distinct i from unnest(queue_notification_email.notification_ids) i where i is not null);
  v_strange uuid;
  v_id uuid;
begin
  perform procjobs.require_host('host_people', 'host_inbox');
  perform procjobs.check_person(queue_notification_email.person);
  select i into v_strange
  from unnest(v_ids) i
  where not exists (select from procjobs.host_inbox n where n.id = i and n.person_id = queue_notification_email.person)
  limit 1;
  if cardinality(v_ids) not between 1 and 1000 or v_strange is not null or not isfinite(queue_notification_email.scheduled_for) then
    raise exception 'the notices cannot be mailed: %', case
        when v_strange is not null then format('the person has no notice %s', v_strange)
        when cardinality(v_ids) not between 1 and 1000 then format('there are %s, not 1 to 1000', cardinality(v_ids))
        else 'the time is infinite'
      end
      using errcode = 'PJ023',
            detail = format('person %s, %s notices', queue_notification_email.person, cardinality(v_ids)),
            hint = 'select id, title from procjobs.host_inbox where person_id = ... lists the notices of a person.';
  end if;
  insert into procjobs.notification_email_queue as q (person_id, notification_ids, scheduled_for, created_by, created_at)
  values (
    queue_notification_email.person, v_ids, coalesce(queue_notification_email.scheduled_for, procjobs.clock()), session_user, procjobs.clock()
  )
  returning q.id into v_id;
  return v_id;
end
$$;
comment on function procjobs.queue_notification_email(uuid, uuid[], timestamptz) is
  'Lets notices of a person''s inbox be mailed, not before scheduled_for (now); what is due for one person together is one mail, and what '
  'was read meanwhile is left out. Returns the id of the row in notification_email_queue. Unknown person: PJ020; unknown notices: PJ023. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.claim_notice_mails(p_now timestamptz, p_max integer)
returns setof procjobs.notification_email_queue
language sql
set search_path = pg_catalog, pg_temp
as $$
  with next as materialized (
    select o.person_id, min(o.scheduled_for) as since
    from (
      select q.person_id, q.scheduled_for
      from procjobs.notification_email_queue q
      where q.status = 'pending'
        and q.scheduled_for <= p_now
      order by q.scheduled_for
      limit greatest(p_max, 0) * 20
    ) o
    group by o.person_id
    order by 2, 1
    limit greatest(p_max, 0)
  )
  select q.*
  from procjobs.notification_email_queue q
  where q.person_id in (select n.person_id from next n)
    and q.status = 'pending'
    and q.scheduled_for <= p_now
  order by q.id
  for update skip locked
$$;
comment on function procjobs.claim_notice_mails(timestamptz, integer) is
  'All that is due for those persons who wait longest, locked: as many persons as there may be mails.';

create or replace function procjobs.settle_notice_mails()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  update procjobs.notification_email_queue q
  set status = case when n.id is null then 'pending' else procjobs.notice_status(n.status) end,
      notification_id = n.id,
      attempts = case when n.id is null then q.attempts else n.retry_count + 1 end,
      error = case when n.status <> 'sent' then n.last_error end,
      processed_at = n.processed_at
  from procjobs.notification_email_queue o
  left join procjobs.notification_jobs n on n.id = o.notification_id
  where o.status = 'processing'
    and (n.id is null or n.status not in ('pending', 'processing'))
    and q.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.settle_notice_mails() is
  'Rows that are in no mail under way any more: those whose mail was deleted wait again, others get its fate. Returns how many.';

create or replace function procjobs.notice_status(p_status text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case p_status when 'sent' then 'sent' when 'failed' then 'failed' when 'cancelled' then 'skipped' else 'processing' end
$$;
comment on function procjobs.notice_status(text) is 'The status of queued notices by that of their mail.';

create or replace function procjobs.process_email_queue(max_mails integer default 50)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_rows procjobs.notification_email_queue[];
  v_left integer;
begin
  -- One caller at a time, since they count together.
  if not pg_try_advisory_xact_lock(hashtext('procjobs.process_email_queue')) then
    return 0;
  end if;
  perform procjobs.settle_notice_mails();
  select least(max_mails, 50 - count(distinct q.notification_id)) into v_left
  from procjobs.notification_email_queue q
  where q.claimed_at >= date_trunc('minute', v_now)
    and q.notification_id is not null;
  v_rows := array(select q from procjobs.claim_notice_mails(v_now, v_left) q);
  if v_rows = '{}' then
    return 0;
  end if;
  perform procjobs.require_host('host_people', 'host_inbox');
  return procjobs.write_notice_mails(v_now, v_rows);
end
$$;
comment on function procjobs.process_email_queue(integer) is
  'Requests the mails of notices that are due: at most max_mails, and 50 in a minute, however many call it. Notices that were read meanwhile are '
  'left out; where all were, the row ends as skipped. Returns how many mails. Called every minute by the schedule of this name. '
  'Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.write_notice_mails(p_now timestamptz, p_rows procjobs.notification_email_queue[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[];
  v_persons uuid[];
  v_contents jsonb[];
begin
  with row_of as materialized (
    select r.id, r.person_id, p.id is not null as there, procjobs.is_reachable(p.email) as reachable, n.ids
    from unnest(p_rows) r
    left join procjobs.host_people p on p.id = r.person_id
    cross join lateral (
      select array_agg(i.id) as ids
      from procjobs.host_inbox i
      where i.id = any (r.notification_ids)
        and i.person_id = r.person_id
        and i.read_at is null
    ) n
  ),
  mail as materialized (
    select gen_random_uuid() as id, r.person_id, jsonb_agg(distinct i.id) as notice_ids
    from row_of r
    cross join unnest(r.ids) i (id)
    where r.reachable
    group by r.person_id
  ),
  moved as (
    update procjobs.notification_email_queue q
    set status = case when not r.reachable then 'failed' when r.ids is null then 'skipped' else 'processing' end,
        claimed_at = p_now,
        notification_id = m.id,
        error = case
          when not r.there then 'the person is not there any more'
          when not r.reachable then 'the person has no e-mail address'
          when r.ids is null then 'all of it had been read'
        end,
        processed_at = case when not r.reachable or r.ids is null then p_now end
    from row_of r
    left join mail m on m.person_id = r.person_id and r.ids is not null
    where q.id = r.id
  )
  select array_agg(m.id), array_agg(m.person_id), array_agg(jsonb_build_object('notice_ids', m.notice_ids))
  into v_ids, v_persons, v_contents
  from mail m;
  return procjobs.request_letters_of('notices', v_ids, v_contents, p_persons => v_persons);
end
$$;
comment on function procjobs.write_notice_mails(timestamptz, procjobs.notification_email_queue[]) is
  'Requests one mail for each person of claimed rows, and notes in the rows in which mail they are or why in none. Returns how many mails.';

create or replace function procjobs.notices_content(p_job procjobs.notification_jobs)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.require_host('host_inbox');
  return (
    select (p_job.content - 'notice_ids') || jsonb_build_object('count', count(*), 'notices', jsonb_agg(jsonb_build_object(
        'kind', i.kind, 'title', i.title, 'url', i.url, 'created_at', i.created_at,
        'body', case when length(i.body) > 400 then rtrim(left(i.body, 399)) || '…' else i.body end) order by i.created_at desc, i.id))
    from jsonb_array_elements_text(p_job.content -> 'notice_ids') n (id)
    join procjobs.host_inbox i on i.id = n.id::uuid and i.person_id = p_job.person_id
    where i.read_at is null
    having count(*) > 0
  );
end
$$;
comment on function procjobs.notices_content(procjobs.notification_jobs) is
  'The words of a notice mail, newest first, without what was read or removed meanwhile. Null: nothing is left.';

create or replace function procjobs.follow_notices()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update procjobs.notification_email_queue q
  set status = procjobs.notice_status(new.status),
      attempts = case when new.message_id is null then 0 else new.retry_count + 1 end,
      error = case when new.status <> 'sent' then new.last_error end,
      processed_at = new.processed_at
  where q.notification_id = new.id;
  return null;
end
$$;
comment on function procjobs.follow_notices() is
  'Trigger: queued notices have the fate of their mail. Definer: whoever may cancel a job need no rights on our tables.';

create or replace trigger pj_follow_notices
after update of status on procjobs.notification_jobs
for each row
when (new.template = 'notices' and new.status is distinct from old.status)
execute function procjobs.follow_notices();
comment on trigger pj_follow_notices on procjobs.notification_jobs is 'A notice mail that is under way, sent, failed or cancelled.';
