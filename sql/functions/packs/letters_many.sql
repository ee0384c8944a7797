-- Letters, many at once: the set-based sibling of letters.sql, by the same rules.
-- Owns:        rows of procjobs.notification_jobs, together with notifications.sql.
-- Lock order:  procrastinate_jobs, then notification_jobs.

create or replace function procjobs.request_letters(
  p_ids uuid[],
  p_templates text[],
  p_contents jsonb[],
  p_recipients uuid[],
  p_persons uuid[],
  p_addresses text[],
  p_address_names text[],
  p_types text[],
  p_urgencies text[],
  p_scheduled_at timestamptz[],
  p_groups uuid[]
)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_sequence regclass := pg_get_serial_sequence('public.procrastinate_jobs', 'id');
  v_queue text;
  v_jobs bigint[];
begin
  if cardinality(p_ids) = 0 then
    return 0;
  end if;
  select coalesce(s.queue, t.queue) into strict v_queue
  from procjobs.tasks t
  left join procjobs.task_settings s on s.task = t.name
  where t.name = 'procjobs.send_notification';

  -- As insert_jobs does it, for jobs that have no key and no limit to mind.
  v_jobs := array(select nextval(v_sequence) from unnest(p_ids));
  perform set_config('procjobs.args_checked', 'on', true), set_config('procjobs.letters_new', 'on', true);
  insert into public.procrastinate_jobs (id, task_name, queue_name, priority, args, scheduled_at, pj_tags)
  select
    l.job_id, 'procjobs.send_notification', v_queue, procjobs.urgency_priority(l.urgency),
    jsonb_build_object('notification_id', l.id), l.scheduled_at, procjobs.notification_tags(l.notification_type, 'email')
  from unnest(p_ids, p_types, p_urgencies, p_scheduled_at, v_jobs) as l (id, notification_type, urgency, scheduled_at, job_id);
  perform set_config('procjobs.args_checked', '', true), set_config('procjobs.letters_new', '', true);

  insert into procjobs.notification_jobs (
    id, recipient_id, person_id, address, address_name, group_id, template, notification_type, urgency, delivery_method,
    content, status, scheduled_for, created_at, created_by, job_id
  )
  select
    l.id, l.recipient_id, l.person_id, l.address, case when l.address is not null then l.address_name end, l.group_id,
    l.template, l.notification_type, l.urgency, 'email', l.content, 'pending', coalesce(l.scheduled_at, v_now), v_now,
    session_user, l.job_id
  from unnest(
    p_ids, p_templates, p_contents, p_recipients, p_persons, p_addresses, p_address_names, p_types, p_urgencies, p_scheduled_at,
    p_groups, v_jobs
  ) as l (
    id, template, content, recipient_id, person_id, address, address_name, notification_type, urgency, scheduled_at,
    group_id, job_id
  );
  return cardinality(p_ids);
end
$$;
comment on function procjobs.request_letters(
  uuid[], text[], jsonb[], uuid[], uuid[], text[], text[], text[], text[], timestamptz[], uuid[]
) is
  'Writes the rows of letters that were checked, under the ids given for them, and their queue jobs: request_notification for many. '
  'Arrays of one length. Returns how many.';

create or replace function procjobs.request_letters_of(
  p_template text,
  p_ids uuid[],
  p_contents jsonb[],
  p_recipients uuid[] default null,
  p_groups uuid[] default null,
  p_persons uuid[] default null,
  p_urgencies text[] default null,
  p_urgency text default 'normal'
)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_length constant integer[] := array[coalesce(cardinality(p_ids), 0)];
  v_templates constant text[] := array_fill(p_template, v_length);
begin
  if v_templates = '{}' then
    return 0;
  end if;
  return procjobs.request_letters(
    p_ids, v_templates, p_contents, p_recipients, p_persons, null, null, v_templates,
    coalesce(p_urgencies, array_fill(p_urgency, v_length)), null, p_groups);
end
$$;
comment on function procjobs.request_letters_of(text, uuid[], jsonb[], uuid[], uuid[], uuid[], text[], text) is
  'request_letters for letters by one template, to recipients or to persons, at once, each with an urgency of its own or all with one. '
  'No ids, or null: none. Returns how many.';

create or replace function procjobs.first_bad_letter(p_letters jsonb)
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_bad integer;
begin
  select min(e.n) into v_bad
  from jsonb_array_elements(p_letters) with ordinality as e (value, n)
  cross join lateral jsonb_to_record(e.value) as l (
    template text, content jsonb, recipient uuid, person uuid, address text, urgency text, group_id uuid)
  left join procjobs.host_recipients r on r.id = l.recipient
  where procjobs.letter_problems(l.template, l.content, l.recipient, l.person, l.address, coalesce(l.urgency, 'normal')) <> '{}'
     or l.recipient is not null and not procjobs.is_reachable(r.email)
     or l.group_id is not null and l.recipient is not null and not exists (
       select from procjobs.host_group_recipients m where m.group_id = l.group_id and m.recipient_id = l.recipient
     );
  -- An application may have recipients and no people.
  if exists (select from jsonb_array_elements(p_letters) e where e ->> 'person' is not null) then
    perform procjobs.require_host('host_people');
    select least(v_bad, min(e.n)) into v_bad
    from jsonb_array_elements(p_letters) with ordinality as e (value, n)
    left join procjobs.host_people p on p.id = (e.value ->> 'person')::uuid
    where e.value ->> 'person' is not null
      and not procjobs.is_reachable(p.email);
  end if;
  return v_bad;
end
$$;
comment on function procjobs.first_bad_letter(jsonb) is
  'Which element of an array of letters check_letter would refuse; null if it would none. It looks at all of them at once.';

create or replace function procjobs.check_letters(p_letters jsonb)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys constant text[] := '{template,content,recipient,person,address,address_name,notification_type,urgency,scheduled_at,group_id}';
  v_problem text;
  v_bad integer;
  v_letter jsonb;
  v_state text;
  v_detail text;
  v_hint text;
begin
  if p_letters is null or jsonb_typeof(p_letters) <> 'array' then
    v_problem := format('letters must be a JSON array, is %s', coalesce(jsonb_typeof(p_letters), 'null'));
  else
    select format('letter %s of the array: %s', e.n, case
        when jsonb_typeof(e.value) <> 'object' then format('it is %s, not an object', jsonb_typeof(e.value))
        else format('%s is not known', (select min(k) from jsonb_object_keys(e.value) k where k <> all (v_keys)))
      end)
    into v_problem
    from jsonb_array_elements(p_letters) with ordinality as e (value, n)
    where jsonb_typeof(e.value) <> 'object' or (e.value - v_keys) <> '{}'
    order by e.n
    limit 1;
  end if;
  if v_problem is not null then
    raise exception '%', v_problem
      using errcode = 'PJ023',
            detail = 'its elements are the letters',
            hint = format('Their keys are the arguments of procjobs.enqueue_letter: %s.', array_to_string(v_keys, ', '));
  end if;
  v_bad := procjobs.first_bad_letter(p_letters);
  if v_bad is not null then
    v_letter := p_letters -> v_bad - 1;
    perform procjobs.check_letter(
      v_letter ->> 'template', v_letter -> 'content', (v_letter ->> 'recipient')::uuid, (v_letter ->> 'person')::uuid,
      v_letter ->> 'address', coalesce(v_letter ->> 'urgency', 'normal'), (v_letter ->> 'group_id')::uuid);
  end if;
exception
  when sqlstate 'PJ020' or sqlstate 'PJ021' or sqlstate 'PJ023' then
    get stacked diagnostics v_state = returned_sqlstate, v_problem = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
    raise exception '%', case when v_bad is null then v_problem else format('letter %s of the array: %s', v_bad, v_problem) end
      using errcode = v_state, detail = v_detail, hint = v_hint;
end
$$;
comment on function procjobs.check_letters(jsonb) is
  'Raises what check_letter says of the first element of an array of letters that it refuses, and names the element.';

create or replace function procjobs.enqueue_letters(letters jsonb)
returns table (ordinal integer, id uuid)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_ids uuid[];
begin
  perform procjobs.require_host_of_mail();
  perform procjobs.check_letters(enqueue_letters.letters);
  v_ids := array(select gen_random_uuid() from jsonb_array_elements(enqueue_letters.letters));
  perform procjobs.request_letters(
    v_ids, array_agg(l.template order by e.n), array_agg(l.content order by e.n), array_agg(l.recipient order by e.n),
    array_agg(l.person order by e.n), array_agg(l.address order by e.n), array_agg(l.address_name order by e.n),
    array_agg(coalesce(l.notification_type, l.template) order by e.n), array_agg(coalesce(l.urgency, 'normal') order by e.n),
    array_agg(l.scheduled_at order by e.n), array_agg(l.group_id order by e.n))
  from jsonb_array_elements(enqueue_letters.letters) with ordinality as e (value, n)
  cross join lateral jsonb_to_record(e.value) as l (
    template text, content jsonb, recipient uuid, person uuid, address text, address_name text, notification_type text,
    urgency text, scheduled_at timestamptz, group_id uuid)
  having count(*) > 0;
  return query select u.n::integer, u.id from unnest(v_ids) with ordinality as u (id, n);
end
$$;
comment on function procjobs.enqueue_letters(jsonb) is
  'Requests many letters at once, all or none: an array of objects with the names of enqueue_letter''s arguments as keys. '
  'Returns one row an element, in order: its number from 1 and the id of its notification. An error names the element. '
  'Definer: the producer role has no rights on tables.';
