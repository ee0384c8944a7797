-- Digest schedules: who gets a digest of what, and when.
-- Owns:        procjobs.digest_schedules, but for what procjobs.create_digest_jobs moves on.
-- Lock order:  one row of digest_schedules at a time.
-- Local times become instants in cron.sql, as for every schedule: what holds there when clocks change holds here.

create or replace function procjobs.digest_crons(p_frequency text, p_time time, p_day_of_week integer, p_day_of_month integer)
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case p_frequency
    when 'daily' then array[t.of_day || ' * * *']
    when 'weekly' then array[format('%s * * %s', t.of_day, coalesce(p_day_of_week, 1))]
    when 'monthly' then case
      when p_day_of_month = 31 then array[t.of_day || ' L * *']
      -- The last day of the one month that has no such day.
      when p_day_of_month > 28 then array[format('%s %s * *', t.of_day, p_day_of_month), t.of_day || ' L 2 *']
      else array[format('%s %s * *', t.of_day, coalesce(p_day_of_month, 1))]
    end
  end
  from (select to_char(p_time, 'FMSS FMMI FMHH24') as of_day) t
$$;
comment on function procjobs.digest_crons(text, time, integer, integer) is
  'When a digest is due, as cron expressions: the next one is the next of any.';

create or replace function procjobs.next_digest_at(
  frequency text,
  delivery_time time,
  day_of_week integer default null,
  day_of_month integer default null,
  timezone text default 'UTC',
  after timestamptz default null
)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select min(procjobs.cron_next(c, next_digest_at.timezone, coalesce(next_digest_at.after, procjobs.clock())))
  from unnest(procjobs.digest_crons(
    next_digest_at.frequency, next_digest_at.delivery_time, next_digest_at.day_of_week, next_digest_at.day_of_month)) c
$$;
comment on function procjobs.next_digest_at(text, time, integer, integer, text, timestamptz) is
  'When a digest is due next after `after` (now): daily, weekly (day_of_week 1 Monday to 7 Sunday) or monthly (day_of_month, or the '
  'last day of a shorter month). A local time that clocks skip is just after the gap, one that comes twice is the first. '
  'An unknown zone: PJ014.';

create or replace function procjobs.zone_or_null(p_zone text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case when p_zone is not null then procjobs.cron_zone(p_zone) end;
exception
  when sqlstate 'PJ014' then
    return null;
end
$$;
comment on function procjobs.zone_or_null(text) is
  'A time zone as PostgreSQL should be given it; null where it is not known: what the application says of one person must not stop the others.';

create or replace function procjobs.known_zone(p_zone text, p_else text default null)
returns text
language sql
immutable
as $$
  select coalesce(procjobs.zone_or_null(p_zone), procjobs.zone_or_null(p_else), 'UTC')
$$;
comment on function procjobs.known_zone(text, text) is
  'The first of the two time zones that is known, else UTC. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.digest_methods()
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array['email']
$$;
comment on function procjobs.digest_methods() is 'Delivery methods by which a digest can go: those for which it can be written.';

create or replace function procjobs.digest_schedule_schema()
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('type', 'object', 'additionalProperties', false, 'properties', jsonb '{
    "frequency": {"type": "string", "enum": ["daily", "weekly", "monthly"]},
    "delivery_time": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$"},
    "timezone": {"type": ["string", "null"]},
    "day_of_week": {"type": ["integer", "null"], "minimum": 1, "maximum": 7},
    "day_of_month": {"type": ["integer", "null"], "minimum": 1, "maximum": 31},
    "delivery_day": {"type": ["integer", "null"], "minimum": 1, "maximum": 31},
    "max_updates_per_digest": {"type": "integer", "minimum": 1, "maximum": 100},
    "include_content_types": {"type": ["array", "null"], "minItems": 1, "maxItems": 50,
      "items": {"type": "string", "minLength": 1, "maxLength": 100}},
    "is_active": {"type": "boolean"}
  }' || jsonb_build_object('delivery_method', jsonb_build_object('type', 'string', 'enum', to_jsonb(procjobs.digest_methods()))))
$$;
comment on function procjobs.digest_schedule_schema() is 'What can be said of a digest schedule, as JSON Schema.';

create or replace function procjobs.read_digest_schedule(p_row procjobs.digest_schedules, p_words jsonb)
returns procjobs.digest_schedules
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := procjobs.schema_problems(procjobs.digest_schedule_schema(), p_words);
  v_frequency text := coalesce(p_words ->> 'frequency', p_row.frequency);
  v_words jsonb := p_words - 'delivery_day';
begin
  if v_problems = '{}' and p_words ->> 'delivery_day' is not null then
    v_words := v_words || case v_frequency
      when 'weekly' then jsonb_build_object('day_of_week', p_words -> 'delivery_day')
      when 'monthly' then jsonb_build_object('day_of_month', p_words -> 'delivery_day')
      else '{}'
    end;
    v_problems := v_problems || array(
      select 'delivery_day means nothing for a daily digest' where v_frequency = 'daily'
      union all
      select 'delivery_day of a weekly digest must be 1 (Monday) to 7 (Sunday)'
      where v_frequency = 'weekly'
        and (p_words ->> 'delivery_day')::numeric > 7
    );
  end if;
  if v_problems = '{}' then
    -- A day that would be ignored is a misunderstanding: 5 is Friday to one, the fifth to another.
    v_problems := array(
      select format('%s means nothing for a %s digest', d.word, v_frequency)
      from (values ('day_of_week', 'weekly'), ('day_of_month', 'monthly')) d (word, frequency)
      where p_words ->> d.word is not null
        and d.frequency <> v_frequency
    );
  end if;
  if v_problems = '{}' and p_words ->> 'timezone' is not null and procjobs.zone_or_null(p_words ->> 'timezone') is null then
    v_problems := array[format('time zone %s is not known', p_words -> 'timezone')];
  end if;
  if v_problems <> '{}' then
    raise exception 'there can be no such digest: %', v_problems[1]
      using errcode = 'PJ060',
            detail = array_to_string(v_problems, E'\n'),
            hint = 'frequency daily, weekly or monthly; delivery_time as 09:00; day_of_week 1 (Monday) to 7 (Sunday); day_of_month 1 to 31; '
              'timezone as Europe/Paris; max_updates_per_digest 1 to 100; include_content_types as ["photos", "text"], or null for all.';
  end if;
  return jsonb_populate_record(p_row, v_words);
end
$$;
comment on function procjobs.read_digest_schedule(procjobs.digest_schedules, jsonb) is
  'A digest schedule with what is given changed; raises PJ060 with every problem in DETAIL. '
  'delivery_day is the day of the week or of the month, as the frequency is.';

create or replace function procjobs.next_digest_of(p_row procjobs.digest_schedules)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select procjobs.next_digest_at(
      p_row.frequency, p_row.delivery_time, p_row.day_of_week, p_row.day_of_month, procjobs.known_zone(
        p_row.timezone, (select r.timezone from procjobs.host_recipients r where r.id = p_row.recipient_id limit 1)))
  );
end
$$;
comment on function procjobs.next_digest_of(procjobs.digest_schedules) is 'When a digest is due next, by what its schedule says now.';

create or replace function procjobs.raise_digest_exists(p_row procjobs.digest_schedules)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'there is a % digest of that already', p_row.frequency
    using errcode = 'PJ062',
          detail = format('digest schedule %s', (
            select s.id
            from procjobs.digest_schedules s
            where s.recipient_id = p_row.recipient_id
              and s.group_id is not distinct from p_row.group_id
              and s.frequency = p_row.frequency
              and s.id <> p_row.id
          )),
          hint = 'Change it with procjobs.update_digest_schedule; one for each recipient, group and frequency.';
end
$$;
comment on function procjobs.raise_digest_exists(procjobs.digest_schedules) is 'Raises PJ062.';

drop function if exists procjobs.create_digest_schedule(
  uuid, text, uuid, text, text, integer, integer, integer, text[], text, boolean, uuid);
create or replace function procjobs.create_digest_schedule(
  recipient uuid,
  frequency text,
  "group" uuid default null,
  delivery_time text default '09:00',
  timezone text default null,
  day_of_week integer default null,
  day_of_month integer default null,
  max_updates_per_digest integer default 10,
  include_content_types text[] default null,
  delivery_method text default 'email',
  is_active boolean default true,
  owner uuid default null,
  delivery_day integer default null
)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row procjobs.digest_schedules;
begin
  perform procjobs.require_host_of_mail(), procjobs.require_host('host_update_reads');
  v_row := procjobs.read_digest_schedule(v_row, jsonb_build_object(
    'frequency', create_digest_schedule.frequency, 'delivery_time', create_digest_schedule.delivery_time,
    'timezone', create_digest_schedule.timezone, 'day_of_week', create_digest_schedule.day_of_week,
    'day_of_month', create_digest_schedule.day_of_month, 'max_updates_per_digest', create_digest_schedule.max_updates_per_digest,
    'include_content_types', create_digest_schedule.include_content_types,
    'delivery_method', create_digest_schedule.delivery_method, 'is_active', create_digest_schedule.is_active)
    || jsonb_strip_nulls(jsonb_build_object('delivery_day', create_digest_schedule.delivery_day)));
  v_row.recipient_id := create_digest_schedule.recipient;
  v_row.group_id := create_digest_schedule."group";
  -- Somebody else's recipient is answered like one that is not there.
  perform procjobs.check_addressee(
    case when procjobs.owns_recipient(create_digest_schedule.owner, v_row.recipient_id) then v_row.recipient_id end,
    v_row.group_id, null, v_row.delivery_method);

  v_row.id := gen_random_uuid();
  v_row.created_by := session_user;
  v_row.created_at := procjobs.clock();
  v_row.updated_at := v_row.created_at;
  -- The first one tells as much as any: it need not wait for something new.
  v_row.told_until := v_row.created_at - case v_row.frequency
    when 'daily' then interval '1 day' when 'weekly' then interval '7 days' else interval '31 days' end;
  v_row.next_digest_scheduled := procjobs.next_digest_of(v_row);
  insert into procjobs.digest_schedules select v_row.*;
  return v_row.id;
exception
  when unique_violation then
    perform procjobs.raise_digest_exists(v_row);
end
$$;
comment on function procjobs.create_digest_schedule(uuid, text, uuid, text, text, integer, integer, integer, text[], text, boolean, uuid, integer) is
  'Lets a recipient have a digest of a group''s updates (null: of all groups the recipient is in) and returns its id. '
  'frequency: daily, weekly (day_of_week 1 Monday to 7 Sunday) or monthly (day_of_month, clamped to the month''s last day), or either by delivery_day, at a local time '
  'of timezone (null: the recipient''s). max_updates_per_digest: the newest; include_content_types: null for all. '
  'owner: only for recipients of this person. What cannot be: PJ060; unknown recipient or group: PJ020, PJ021; there is one: PJ062. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.owns_recipient(p_owner uuid, p_recipient uuid)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select p_owner is null
      or exists (select from procjobs.host_recipients r where r.id = p_recipient and r.owner_id = p_owner)
  );
end
$$;
comment on function procjobs.owns_recipient(uuid, uuid) is 'Whether a person may see and change what goes to a recipient; nobody in particular may.';

create or replace function procjobs.find_digest_schedule(p_id uuid, p_owner uuid)
returns procjobs.digest_schedules
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row procjobs.digest_schedules;
begin
  select s.* into v_row from procjobs.digest_schedules s where s.id = p_id for update;
  if v_row.id is null or not procjobs.owns_recipient(p_owner, v_row.recipient_id) then
    raise exception 'there is no digest schedule %', coalesce(p_id::text, 'null')
      using errcode = 'PJ061',
            detail = format('id: %s', coalesce(p_id::text, 'null')),
            hint = 'procjobs digests lists them; select * from procjobs.list_digest_schedules().';
  end if;
  return v_row;
end
$$;
comment on function procjobs.find_digest_schedule(uuid, uuid) is
  'A digest schedule, locked. PJ061 when there is none, or it is not the owner''s.';

create or replace function procjobs.update_digest_schedule(id uuid, changes jsonb, owner uuid default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_old procjobs.digest_schedules := procjobs.find_digest_schedule(update_digest_schedule.id, update_digest_schedule.owner);
  v_row procjobs.digest_schedules := procjobs.read_digest_schedule(v_old, update_digest_schedule.changes);
begin
  if v_row is not distinct from v_old then
    return false;
  end if;
  -- Another time, or going on after a pause: from now, nothing is made up for.
  if (v_row.frequency, v_row.delivery_time, v_row.timezone, v_row.day_of_week, v_row.day_of_month)
      is distinct from (v_old.frequency, v_old.delivery_time, v_old.timezone, v_old.day_of_week, v_old.day_of_month)
    or v_row.is_active and not v_old.is_active
  then
    v_row.next_digest_scheduled := procjobs.next_digest_of(v_row);
  end if;
  update procjobs.digest_schedules s
  set (
    frequency, delivery_time, timezone, day_of_week, day_of_month, max_updates_per_digest, include_content_types,
    delivery_method, is_active, next_digest_scheduled, updated_at
  ) = row (
    v_row.frequency, v_row.delivery_time, v_row.timezone, v_row.day_of_week, v_row.day_of_month, v_row.max_updates_per_digest,
    v_row.include_content_types, v_row.delivery_method, v_row.is_active, v_row.next_digest_scheduled, procjobs.clock()
  )
  where s.id = v_row.id;
  return true;
exception
  when unique_violation then
    perform procjobs.raise_digest_exists(v_row);
end
$$;
comment on function procjobs.update_digest_schedule(uuid, jsonb, uuid) is
  'Changes what is given of a digest schedule, {"is_active": false} say, and nothing else; false if all was so already. '
  'A new time holds from now on. owner: only if the recipient is this person''s. Unknown: PJ061; what cannot be: PJ060; there is one: PJ062. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.delete_digest_schedule(id uuid, owner uuid default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  delete from procjobs.digest_schedules s
  where s.id = delete_digest_schedule.id
    and procjobs.owns_recipient(delete_digest_schedule.owner, s.recipient_id);
  return found;
end
$$;
comment on function procjobs.delete_digest_schedule(uuid, uuid) is
  'Removes a digest schedule; what came of its digests stays. False if there was none, or it is not the owner''s. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.list_digest_schedules(
  p_id uuid default null,
  p_recipient uuid default null,
  p_group uuid default null,
  p_frequency text default null,
  p_active boolean default null,
  p_owner uuid default null,
  p_limit integer default 100,
  p_offset integer default 0
)
returns table (
  id uuid, recipient_id uuid, recipient_name text, group_id uuid, group_name text, frequency text, delivery_time time, timezone text,
  zone text, day_of_week integer, day_of_month integer, delivery_day integer, max_updates_per_digest integer,
  include_content_types text[], delivery_method text, is_active boolean, last_digest_at timestamptz,
  next_digest_scheduled timestamptz, last_outcome text, last_reason text, created_at timestamptz, updated_at timestamptz
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
    s.id, s.recipient_id, r.name, s.group_id, g.name, s.frequency, s.delivery_time, s.timezone,
    procjobs.known_zone(s.timezone, r.timezone), s.day_of_week, s.day_of_month,
    case s.frequency when 'weekly' then coalesce(s.day_of_week, 1) when 'monthly' then coalesce(s.day_of_month, 1) end,
    s.max_updates_per_digest, s.include_content_types, s.delivery_method, s.is_active, s.last_digest_at,
    s.next_digest_scheduled, l.outcome, l.reason, s.created_at, s.updated_at
  from procjobs.digest_schedules s
  left join procjobs.host_recipients r on r.id = s.recipient_id
  left join procjobs.host_groups g on g.id = s.group_id
  left join lateral (
    select d.outcome, d.reason from procjobs.digest_runs d where d.schedule_id = s.id order by d.id desc limit 1
  ) l on true
  where (p_id is null or s.id = p_id)
    and (p_recipient is null or s.recipient_id = p_recipient)
    and (p_group is null or s.group_id = p_group)
    and (p_frequency is null or s.frequency = p_frequency)
    and (p_active is null or s.is_active = p_active)
    and (p_owner is null or r.owner_id = p_owner)
  order by s.created_at desc, s.id
  limit p_limit offset p_offset;
end
$$;
comment on function procjobs.list_digest_schedules(uuid, uuid, uuid, text, boolean, uuid, integer, integer) is
  'Digest schedules, newest first, with names, the zone that counts, and what came of the last digest. p_owner: only for recipients of '
  'this person. Definer: the reader role has no rights on tables.';
