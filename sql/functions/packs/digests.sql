-- Digests: what a recipient has not read yet, in one mail.
-- Owns:        procjobs.digest_runs; of digest_schedules last_digest_at, told_until and next_digest_scheduled.
-- Lock order:  digest_schedules (skip locked), then procrastinate_jobs, then notification_jobs.
-- Which updates a digest tells of is decided when it is created: its retries bring nothing new, and the next one begins where it
-- ended. What is said of them is written when it is sent: what was read, removed or muted in between is left out.

create or replace function procjobs.due_digests(p_now timestamptz, p_max integer)
returns setof procjobs.digest_schedules
language sql
set search_path = pg_catalog, pg_temp
as $$
  select s.*
  from procjobs.digest_schedules s
  where s.is_active
    and s.next_digest_scheduled <= p_now
  order by s.next_digest_scheduled
  limit p_max
  for update skip locked
$$;
comment on function procjobs.due_digests(timestamptz, integer) is
  'Digest schedules that are due, locked, the longest due first. What somebody else is at is passed over.';

drop function if exists procjobs.gather_updates(timestamptz, procjobs.digest_schedules[]);
create or replace function procjobs.gather_updates(p_now timestamptz, p_due procjobs.digest_schedules[])
returns table (
  schedule_id uuid, unmuted bigint, muted_until timestamptz, shared bigint, wanted bigint, unread bigint, update_ids uuid[], lately uuid[],
  held_back jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  -- An update has the time at which its transaction began, and is seen when that ends, perhaps after a digest that it should be in.
  c_late constant interval := '10 minutes';
begin
  return query
  with due as materialized (
    select s.id, s.recipient_id, s.group_id, s.max_updates_per_digest as most, s.include_content_types as types,
      s.told_until, s.told_lately as lately, s.held_back,
      case when s.told_lately is null then s.told_until else s.told_until - c_late end as since
    from unnest(p_due) s
  ),
  member as materialized (
    select d.id, d.recipient_id, d.most, d.types, d.told_until, d.lately, g.group_id as in_group, g.muted_until as until,
      g.muted_until > p_now is true as muted,
      -- A group that was muted goes on where it was held back, whatever was told of the others since.
      coalesce((d.held_back ->> g.group_id::text)::timestamptz, d.since) as since,
      coalesce(d.held_back -> g.group_id::text, to_jsonb(d.told_until)) as held
    from due d
    join procjobs.host_group_recipients g on g.recipient_id = d.recipient_id and g.group_id = coalesce(d.group_id, g.group_id)
  ),
  shared as materialized (
    -- Once for all who have the same to read. The limit keeps it a look into the index: what a group shared before is not read.
    select w.in_group, w.since, u.*
    from (select distinct m.in_group, m.since from member m where not m.muted) w
    cross join lateral (
      select n.id as update_id, n.created_at, n.content_type
      from procjobs.host_updates n
      where n.group_id = w.in_group
        and n.created_at > w.since
        and n.created_at <= p_now
      order by n.created_at desc
      limit 1000
    ) u
  ),
  seen as materialized (
    select m.id, m.most, u.update_id, u.created_at, m.types is null or u.content_type = any (m.types) as wanted,
      u.created_at > m.told_until or u.update_id <> all (m.lately) as new,
      not exists (select from procjobs.host_update_reads r where r.update_id = u.update_id and r.recipient_id = m.recipient_id) as unread
    from member m
    join shared u on u.in_group = m.in_group and u.since = m.since
    where not m.muted
  ),
  told as (
    select s.id, count(*) filter (where s.new) as shared, count(*) filter (where s.new and s.wanted) as wanted,
      count(*) filter (where s.new and s.wanted and s.unread) as unread,
      (array_agg(s.update_id order by s.created_at desc, s.update_id) filter (where s.new and s.wanted and s.unread))[1:min(s.most)] as update_ids,
      array_agg(s.update_id) filter (where s.created_at > p_now - c_late) as lately
    from seen s
    group by s.id
  ),
  known as (
    select m.id, count(*) filter (where not m.muted) as unmuted, min(m.until) as until,
      coalesce(jsonb_object_agg(m.in_group, m.held) filter (where m.muted), '{}') as held_back
    from member m
    group by m.id
  )
  select k.id, k.unmuted, k.until, coalesce(t.shared, 0), coalesce(t.wanted, 0), coalesce(t.unread, 0), t.update_ids, coalesce(t.lately, '{}'), k.held_back
  from known k
  left join told t on t.id = k.id;
end
$$;
comment on function procjobs.gather_updates(timestamptz, procjobs.digest_schedules[]) is
  'What there is to tell in digests that are due: groups, updates since the last digest, also those that were committed later, those of wanted kinds, those unread, '
  'and the newest of these; lately: what the next one need not look at again; held_back: muted groups, and since when nothing of them was told. Of one group at most the last 1000 updates are looked at. No row: the recipient is in none of the groups.';

drop function if exists procjobs.judge_digests(timestamptz, procjobs.digest_schedules[]);
create or replace function procjobs.judge_digests(p_now timestamptz, p_due procjobs.digest_schedules[])
returns table (
  schedule_id uuid, recipient_id uuid, group_id uuid, frequency text, slot timestamptz, next_at timestamptz, outcome text, reason text,
  updates integer, left_out integer, notification_id uuid, content jsonb, lately uuid[], held_back jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_salt text := gen_random_uuid();
begin
  return query
  with who as materialized (
    select
      s.id, s.recipient_id, s.group_id, s.frequency, s.delivery_time, s.include_content_types, s.next_digest_scheduled,
      s.told_until as since, coalesce(s.day_of_week, 1) as day_of_week, coalesce(s.day_of_month, 1) as day_of_month,
      r.id is not null as there, procjobs.is_reachable(r.email) as reachable, coalesce(s.timezone, r.timezone, 'UTC') as zone
    from unnest(p_due) s
    left join procjobs.host_recipients r on r.id = s.recipient_id
  ),
  coming as materialized (
    -- Many are due at the same time of few zones: each is computed once.
    select t.*, procjobs.next_digest_at(
      t.frequency, t.delivery_time, t.day_of_week, t.day_of_month, procjobs.known_zone(t.zone), p_now) as at
    from (select distinct w.frequency, w.delivery_time, w.day_of_week, w.day_of_month, w.zone from who w) t
  ),
  found as (
    select w.*, c.at, f.*, case
        when not w.there or f.schedule_id is null then 'gone'
        when not w.reachable then 'unreachable'
        when f.unmuted = 0 then 'muted'
        when f.unread = 0 then 'empty'
        else 'created'
      end as outcome
    from who w
    join coming c
      on (c.frequency, c.delivery_time, c.zone, c.day_of_week, c.day_of_month)
       = (w.frequency, w.delivery_time, w.zone, w.day_of_week, w.day_of_month)
    left join procjobs.gather_updates(p_now, p_due) f on f.schedule_id = w.id
  )
  select
    d.id, d.recipient_id, d.group_id, d.frequency, d.next_digest_scheduled, d.at, d.outcome, case d.outcome
      when 'gone' then case
        when not d.there then 'the recipient is not there any more'
        when d.group_id is not null then 'the recipient does not receive what the group shares any more'
        else 'the recipient is in no group'
      end
      when 'unreachable' then 'the recipient has no e-mail address'
      when 'muted' then case when isfinite(d.muted_until) then 'muted until ' || procjobs.say_time(d.muted_until) else 'muted' end
      when 'empty' then case
        when d.shared = 0 then format('nothing was shared since %s', procjobs.say_time(d.since))
        when d.wanted = 0 then format('%s shared since %s, none of them %s', d.shared, procjobs.say_time(d.since),
          array_to_string(d.include_content_types, ' or '))
        else format('all of %s shared since %s had been read', d.wanted, procjobs.say_time(d.since))
      end
    end,
    coalesce(d.unread, 0)::integer, (coalesce(d.unread, 0) - coalesce(cardinality(d.update_ids), 0))::integer,
    -- As good as a random one here, and five times as fast.
    case d.outcome when 'created' then md5(d.id || v_salt)::uuid end,
    case d.outcome when 'created' then jsonb_build_object('frequency', d.frequency, 'since', d.since, 'update_ids', d.update_ids,
      'more', d.unread - cardinality(d.update_ids)) end,
    d.lately, d.held_back
  from found d;
end
$$;
comment on function procjobs.judge_digests(timestamptz, procjobs.digest_schedules[]) is
  'What becomes of digests that are due, when each is due next, and the content of those that are to be sent.';

create or replace function procjobs.create_digest_jobs(max_schedules integer default 100000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
set work_mem = '128MB'
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_due procjobs.digest_schedules[];
  v_ids uuid[];
  v_contents jsonb[];
  v_recipients uuid[];
  v_groups uuid[];
begin
  v_due := array(select d from procjobs.due_digests(v_now, max_schedules) d);
  if v_due = '{}' then
    return 0;
  end if;
  perform procjobs.require_host_of_mail(), procjobs.require_host('host_update_reads');
  with judged as materialized (
    select j.* from procjobs.judge_digests(v_now, v_due) j
  ),
  moved as (
    update procjobs.digest_schedules s
    set next_digest_scheduled = j.next_at,
        last_digest_at = case j.outcome when 'created' then v_now else s.last_digest_at end,
        told_until = case when j.outcome in ('created', 'empty') then v_now else s.told_until end,
        told_lately = case when j.outcome in ('created', 'empty') then j.lately else s.told_lately end,
        held_back = case when j.outcome in ('created', 'empty') then j.held_back else s.held_back end
    from judged j
    where s.id = j.schedule_id
  ),
  noted as (
    insert into procjobs.digest_runs (
      schedule_id, recipient_id, group_id, frequency, slot, ran_at, outcome, reason, updates, left_out, notification_id)
    select
      j.schedule_id, j.recipient_id, j.group_id, j.frequency, j.slot, v_now, j.outcome, j.reason, j.updates, j.left_out, j.notification_id
    from judged j
  )
  select array_agg(j.notification_id), array_agg(j.content), array_agg(j.recipient_id), array_agg(j.group_id)
  into v_ids, v_contents, v_recipients, v_groups
  from judged j
  where j.outcome = 'created';
  -- After what people wait for: a hundred thousand digests at nine must not hold up the notification of five past.
  return procjobs.request_letters_of('digest', v_ids, v_contents, p_recipients => v_recipients, p_groups => v_groups, p_urgency => 'low');
end
$$;
comment on function procjobs.create_digest_jobs(integer) is
  'Creates the digests that are due, each once however many call it at the same time, and moves every schedule on: one that is days late has '
  'one digest, not many. What came of each is in procjobs.digest_runs. Returns how many mails were requested. '
  'Called every minute by the schedule of this name. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.digest_content(p_job procjobs.notification_jobs)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.require_host('host_update_reads');
  return (
    with shown as materialized (
      select g.id as group_id, g.name as group_name, u.author_name, u.content_type, u.created_at, jsonb_build_object(
          'title', u.title, 'url', u.url, 'image_url', u.image_url, 'created_at', u.created_at,
          'body', case when length(u.body) > 400 then rtrim(left(u.body, 399)) || '…' else u.body end) as said
      from jsonb_array_elements_text(p_job.content -> 'update_ids') i (id)
      join procjobs.host_updates u on u.id = i.id::uuid
      join procjobs.host_groups g on g.id = u.group_id
      join procjobs.host_group_recipients m on m.group_id = u.group_id and m.recipient_id = p_job.recipient_id
      where m.muted_until > procjobs.clock() is not true
        and not exists (select from procjobs.host_update_reads r where r.update_id = u.id and r.recipient_id = p_job.recipient_id)
    ),
    section as (
      select s.group_id, s.group_name, s.author_name, s.content_type, max(s.created_at) as newest, count(*) as updates,
        jsonb_agg(s.said order by s.created_at desc, s.said ->> 'title') as said
      from shown s
      group by s.group_id, s.group_name, s.author_name, s.content_type
    ),
    part as (
      select s.group_name, max(s.newest) as newest, sum(s.updates) as updates, jsonb_agg(jsonb_build_object(
          'author', s.author_name, 'content_type', s.content_type, 'updates', s.said) order by s.newest desc, s.author_name) as sections
      from section s
      group by s.group_id, s.group_name
    )
    select (p_job.content - 'update_ids') || jsonb_build_object('count', sum(p.updates), 'groups', jsonb_agg(
        jsonb_build_object('name', p.group_name, 'updates', p.updates, 'sections', p.sections) order by p.newest desc, p.group_name))
    from part p
    having count(*) > 0
  );
end
$$;
comment on function procjobs.digest_content(procjobs.notification_jobs) is
  'The words of a digest, by group, author and kind, newest first, without what was read, removed or muted meanwhile. Null: nothing is left.';

create or replace function procjobs.letter_content(p_job procjobs.notification_jobs)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_job.template = 'digest' and p_job.content ? 'update_ids' then procjobs.digest_content(p_job)
    when p_job.template = 'notices' and p_job.content ? 'notice_ids' then procjobs.notices_content(p_job)
    else p_job.content
  end;
end
$$;
comment on function procjobs.letter_content(procjobs.notification_jobs) is
  'What a letter says when it is sent: its content, or what the content refers to, as it is now. Null: nothing is left to say.';

create or replace function procjobs.list_digest_runs(
  p_recipient uuid default null,
  p_schedule uuid default null,
  p_owner uuid default null,
  p_limit integer default 50,
  p_offset integer default 0
)
returns table (
  id bigint, schedule_id uuid, recipient_id uuid, recipient_name text, group_id uuid, group_name text, frequency text, slot timestamptz,
  ran_at timestamptz, outcome text, reason text, updates integer, left_out integer, notification_id uuid, mail_status text, mail_error text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform procjobs.require_host('host_recipients', 'host_groups');
  return query
  select
    d.id, d.schedule_id, d.recipient_id, r.name, d.group_id, g.name, d.frequency, d.slot, d.ran_at, d.outcome, d.reason, d.updates,
    d.left_out, d.notification_id, n.status, n.last_error
  from procjobs.digest_runs d
  left join procjobs.host_recipients r on r.id = d.recipient_id
  left join procjobs.host_groups g on g.id = d.group_id
  left join procjobs.notification_jobs n on n.id = d.notification_id
  where (p_recipient is null or d.recipient_id = p_recipient)
    and (p_schedule is null or d.schedule_id = p_schedule)
    and (p_owner is null or r.owner_id = p_owner)
  order by d.id desc
  limit p_limit offset p_offset;
end
$$;
comment on function procjobs.list_digest_runs(uuid, uuid, uuid, integer, integer) is
  'What came of digests, newest first, and of their mails. p_owner: only for recipients of this person. Definer: the reader role has no rights on tables.';

create or replace function procjobs.why_no_digest(recipient uuid, owner uuid default null)
returns table (schedule_id uuid, frequency text, group_name text, at timestamptz, answer text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select s.id, s.frequency, s.group_name, coalesce(d.ran_at, s.next_digest_scheduled), case
      when not s.is_active then 'the digest is switched off'
      when s.next_digest_scheduled < procjobs.clock() - interval '2 minutes' then format(
        'it was due at %s and nobody has looked: procjobs schedules show create_digest_jobs', procjobs.say_time(s.next_digest_scheduled))
      when d.id is null then format('the first one is due at %s', procjobs.say_time(s.next_digest_scheduled))
      when d.outcome <> 'created' then d.reason
      when d.mail_status = 'sent' then format('it was sent: %s of %s unread updates', d.updates - d.left_out, d.updates)
      when d.mail_status in ('failed', 'cancelled') then format('its mail %s: %s',
        case d.mail_status when 'failed' then 'failed' else 'was not sent' end, d.mail_error)
      when d.mail_status is null then 'its mail was deleted'
      else concat_ws(': ', format('its mail is still %s', d.mail_status), d.mail_error)
    end
  from procjobs.list_digest_schedules(p_recipient => why_no_digest.recipient, p_owner => why_no_digest.owner) s
  left join lateral (select r.* from procjobs.list_digest_runs(p_schedule => s.id, p_limit => 1) r) d on true;
  if not found then
    return query select null::uuid, null::text, null::text, null::timestamptz, 'no digest is scheduled for the recipient'::text;
  end if;
end
$$;
comment on function procjobs.why_no_digest(uuid, uuid) is
  'Why a recipient did not get a digest, in a sentence for each schedule: what came of the last one. owner: only if the recipient is this person''s. '
  'Definer: the reader role has no rights on tables.';

create or replace function procjobs.forget_digest_runs(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := procjobs.clock() - interval '90 days';
  v_runs integer;
  v_mails integer;
begin
  delete from procjobs.digest_runs d
  where d.id in (select o.id from procjobs.digest_runs o order by o.id limit p_max_rows)
    and d.ran_at < v_before;
  get diagnostics v_runs = row_count;
  delete from procjobs.notification_email_queue q
  where q.id in (
    select o.id from procjobs.notification_email_queue o where o.processed_at < v_before order by o.processed_at limit p_max_rows for update skip locked
  );
  get diagnostics v_mails = row_count;
  return v_runs + v_mails;
end
$$;
comment on function procjobs.forget_digest_runs(integer) is
  'Deletes what came of digests, and notice mails that ended, after 90 days, in bounded batches. A chore of upkeep. Returns how many.';

create or replace function procjobs.declare_digests()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.register_sql_task(
    'procjobs.' || t.name, 'procjobs.' || t.name, queue => 'digests', priority => 5, max_attempts => 1, timeout => '5 minutes')
  from unnest('{create_digest_jobs, process_email_queue}'::text[]) t (name);
  return (
    select count(*)
    from procjobs.declare_schedules('pack', '[
      {"name": "create_digest_jobs", "task": "procjobs.create_digest_jobs", "cron": "* * * * *", "group": "digests",
        "description": "Digests that are due"},
      {"name": "process_email_queue", "task": "procjobs.process_email_queue", "cron": "* * * * *", "group": "email_queue",
        "description": "Notices that wait to be mailed"}
    ]') d
    where d.changed
  );
end
$$;
comment on function procjobs.declare_digests() is
  'Registers the SQL tasks of digests and notice mails and makes their schedules. migrate calls it. Returns how many schedules are new or changed.';

create or replace function procjobs.doctor_digests()
returns table (severity text, subject text, finding text, mend text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'warning', 'digests', format('a digest was due at %s and nobody has looked', procjobs.say_time(min(s.next_digest_scheduled))),
    'the schedule create_digest_jobs is off, or no worker runs its jobs: procjobs schedules show create_digest_jobs'
  from procjobs.digest_schedules s
  where s.is_active
    and s.next_digest_scheduled < procjobs.clock() - interval '10 minutes'
  having count(*) > 0
  union all
  select 'warning', 'digests', format('notices wait to be mailed since %s', procjobs.say_time(min(q.scheduled_for))),
    'the schedule process_email_queue is off (ENABLE_EMAIL_QUEUE_JOB), or there are more than 50 mails a minute: procjobs schedules show process_email_queue'
  from procjobs.notification_email_queue q
  where q.status = 'pending'
    and q.scheduled_for < procjobs.clock() - interval '10 minutes'
  having count(*) > 0
$$;
comment on function procjobs.doctor_digests() is 'Digests and notice mails that are overdue.';
