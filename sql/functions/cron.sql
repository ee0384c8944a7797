-- Cron: the instants at which an expression fires in a time zone; the only cron in procjobs. Owns nothing, locks nothing.
-- Expressions and wall times are in cron_fields.sql; `cron_after` turns wall times into instants. Where hour and minute are
-- fixed, a wall time that the zone skips fires just after the gap, and one that comes twice fires the first time. Where hour
-- or minute begins with `*`, every instant counts whose wall time matches.

create or replace function procjobs.cron_zone(p_zone text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_zone text := coalesce(p_zone, 'UTC');
begin
  if v_zone = 'UTC' then
    return v_zone;
  end if;
  -- What PostgreSQL would also take, and nobody means: `Europe/Paris1` and `+02` are POSIX rules, `CEST` has no summer.
  if v_zone !~ '^[A-Za-z_-]+(/[A-Za-z_-]+)+$'
    and v_zone !~* ('^(UTC|GMT[+-]?0?|UCT|Zulu|Universal|Greenwich|Etc/GMT0|Etc/GMT[+-]1?[0-9]|[CEMW]ET|EST5EDT|CST6CDT|MST7MDT'
      '|PST8PDT|EST|MST|HST|Cuba|Egypt|Eire|Factory|GB(-Eire)?|Hongkong|Iceland|Iran|Israel|Jamaica|Japan|Kwajalein|Libya'
      '|NZ(-CHAT)?|Navajo|Poland|Portugal|PRC|ROC|ROK|Singapore|Turkey|W-SU)$')
  then
    perform procjobs.raise_invalid_zone(v_zone);
  end if;
  -- Names that PostgreSQL reads as abbreviations without summer time before it looks for the zone.
  v_zone := case
    when length(v_zone) > 3 then v_zone
    when upper(v_zone) in ('CET', 'MET') then 'Europe/Brussels'
    when upper(v_zone) = 'EET' then 'Europe/Athens'
    when upper(v_zone) = 'WET' then 'Europe/Lisbon'
    else v_zone
  end;
  perform timestamptz 'epoch' at time zone v_zone;
  return v_zone;
exception
  when invalid_parameter_value then
    perform procjobs.raise_invalid_zone(p_zone);
end
$$;
comment on function procjobs.cron_zone(text) is
  'The zone of a schedule as PostgreSQL should be given it: a name of the IANA database; null is UTC. Anything else: PJ014. '
  'Immutable like `at time zone` itself, so that it is asked once for a constant.';

create or replace function procjobs.raise_invalid_zone(p_zone text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'time zone "%" is not known', p_zone
    using errcode = 'PJ014',
          detail = format('timezone: %s', p_zone),
          hint = 'Give a name of the IANA database, such as Europe/Paris; select name from pg_timezone_names lists them.';
end
$$;
comment on function procjobs.raise_invalid_zone(text) is 'Raises PJ014 for a time zone.';

create or replace function procjobs.cron_change(p_zone text, p_low timestamptz, p_high timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval := (p_low at time zone p_zone) - (p_low at time zone 'UTC');
  v_base timestamptz := date_trunc('second', p_low);
  v_low integer := 0;
  v_high integer := ceil(extract(epoch from p_high - date_trunc('second', p_low)));
  v_middle integer;
  v_at timestamptz;
begin
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    v_at := v_base + make_interval(secs => v_middle);
    if (v_at at time zone p_zone) - (v_at at time zone 'UTC') = v_old then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return v_base + make_interval(secs => v_high);
end
$$;
comment on function procjobs.cron_change(text, timestamptz, timestamptz) is
  'The instant after p_low, and at p_high the latest, at which the clocks of a zone change. There must be exactly one.';

create or replace function procjobs.cron_after(p_fields varbit[], p_zone text, p_after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  -- No zone ever moved its clocks by more than a day, or twice within two.
  v_far constant interval := '26 hours';
  v_fixed boolean := get_bit(p_fields[7], 0) = 1;
  v_now timestamp := p_after at time zone p_zone;
  v_from timestamp := date_trunc('second', v_now) + interval '1 second';
  v_again timestamptz;
  v_wall timestamp;
  v_slot timestamptz;
  v_shown timestamp;
  v_first timestamptz;
begin
  if not v_fixed then
    v_again := procjobs.cron_again(p_fields, p_zone, p_after, v_from);
  end if;
  loop
    v_wall := procjobs.cron_wall(p_fields, v_from);
    if v_wall is null then
      return v_again;
    end if;
    v_slot := v_wall at time zone p_zone;  -- the second time, if it comes twice; as before the gap, if never
    v_shown := v_slot at time zone p_zone;
    if v_shown <> v_wall then
      v_slot := procjobs.cron_change(p_zone, v_slot - (v_shown - v_wall), v_slot);
      if v_fixed then
        return v_slot;
      end if;
      v_from := v_slot at time zone p_zone;
      continue;
    end if;
    v_first := v_slot - v_far;
    v_first := (v_wall - ((v_first at time zone p_zone) - (v_first at time zone 'UTC'))) at time zone 'UTC';
    if v_first >= v_slot or (v_first at time zone p_zone) is distinct from v_wall then
      return least(v_again, v_slot);
    elsif v_first > p_after then
      return least(v_again, v_first);
    elsif not v_fixed then
      return least(v_again, v_slot);
    end if;
    -- It fired the first time: go on where the clocks were when they were set back.
    v_from := procjobs.cron_change(p_zone, v_first, v_slot) at time zone 'UTC' + (v_wall - (v_first at time zone 'UTC'));
  end loop;
end
$$;
comment on function procjobs.cron_after(varbit[], text, timestamptz) is
  'The first instant after p_after at which fields of procjobs.cron_fields fire in a zone of procjobs.cron_zone; null when there is none within 50 years.';

create or replace function procjobs.cron_again(p_fields varbit[], p_zone text, p_after timestamptz, p_from timestamp)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_far timestamptz := p_after + interval '26 hours';
  v_change timestamptz;
  v_wall timestamp;
  v_offset interval := (v_far at time zone p_zone) - (v_far at time zone 'UTC');
begin
  if v_offset >= (p_after at time zone p_zone) - (p_after at time zone 'UTC') then
    return null;
  end if;
  v_change := procjobs.cron_change(p_zone, p_after, v_far);
  v_wall := procjobs.cron_wall(p_fields, v_change at time zone p_zone);
  return case when v_wall < p_from then (v_wall - v_offset) at time zone 'UTC' end;
end
$$;
comment on function procjobs.cron_again(varbit[], text, timestamptz, timestamp) is
  'Where the clocks of a zone are set back soon: the first instant at which a wall time before p_from matches when it comes again.';

create or replace function procjobs.cron_first(p_cron text, p_fields varbit[], p_zone text, p_after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_slot timestamptz := procjobs.cron_after(p_fields, p_zone, p_after);
begin
  if v_slot is null and p_cron is not null then
    perform procjobs.raise_cron_never(p_cron);
  end if;
  return v_slot;
end
$$;
comment on function procjobs.cron_first(text, varbit[], text, timestamptz) is
  'procjobs.cron_next of an expression and a zone that were read already; PJ014 when it never fires.';

create or replace function procjobs.cron_next(
  cron text,
  timezone text default 'UTC',
  after timestamptz default null
)
returns timestamptz
language sql
stable
as $$
  select procjobs.cron_first(
    cron, procjobs.cron_fields(cron), procjobs.cron_zone(timezone), coalesce(after, procjobs.clock()))
$$;
comment on function procjobs.cron_next(text, text, timestamptz) is
  'The first instant after `after` (now) at which a cron expression fires in a time zone. Five fields, or six with the seconds first. '
  'Null for a null cron. What cannot be read, never fires, or names no zone: PJ014. '
  'Without a SET clause, so that the planner can inline it and reads a constant expression once.';

create or replace function procjobs.check_cron(cron text, timezone text default 'UTC')
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.cron_zone(timezone);
  if cron is null then
    perform procjobs.raise_invalid_cron(cron, 'it is null');
  end if;
  if procjobs.cron_wall(procjobs.cron_fields(cron), timestamp '2000-01-01') is null then
    perform procjobs.raise_cron_never(cron);
  end if;
end
$$;
comment on function procjobs.check_cron(text, text) is
  'Raises PJ014 when a cron expression cannot be read or never fires, or when the time zone is not known.';

create or replace function procjobs.cron_slots(
  cron text,
  timezone text,
  after timestamptz,
  until timestamptz,
  at_most integer default 1000
)
returns setof timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
rows 10
as $$
declare
  v_fields varbit[] := procjobs.cron_fields(cron);
  v_zone text := procjobs.cron_zone(timezone);
  v_high timestamptz := until;
  v_low timestamptz;
  v_slot timestamptz;
  v_span interval := make_interval(secs => greatest(at_most, 1));
  v_part timestamptz[];
  v_found timestamptz[] := '{}';
begin
  -- From the end, in growing spans: what was missed long ago is not even looked at.
  while v_high > after and (at_most is null or cardinality(v_found) < at_most) loop
    v_low := case when at_most is null or v_span >= v_high - after then after else v_high - v_span end;
    v_part := '{}';
    v_slot := procjobs.cron_after(v_fields, v_zone, v_low);
    while v_slot <= v_high loop
      v_part := v_part || v_slot;
      v_slot := procjobs.cron_after(v_fields, v_zone, v_slot);
    end loop;
    v_found := v_part || v_found;
    v_high := v_low;
    v_span := v_span * 2;
  end loop;
  return query
    select s
    from unnest(v_found) with ordinality u (s, n)
    where at_most is null or n > cardinality(v_found) - at_most
    order by n;
end
$$;
comment on function procjobs.cron_slots(text, text, timestamptz, timestamptz, integer) is
  'When a cron expression fired after `after` and until `until` (that instant too), oldest first: the last at_most of them, null for all. '
  'A longer pause costs no more. What cannot be read: PJ014.';

create or replace function procjobs.cron_preview(
  cron text,
  timezone text default 'UTC',
  "from" timestamptz default null,
  n integer default 10
)
returns table (slot timestamptz, local timestamp, mark text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
rows 10
as $$
declare
  v_fields varbit[] := procjobs.cron_fields(cron);
  v_zone text := procjobs.cron_zone(timezone);
begin
  slot := coalesce("from", procjobs.clock());
  for i in 1..n loop
    slot := procjobs.cron_after(v_fields, v_zone, slot);
    if slot is null then
      perform procjobs.raise_cron_never(cron);
    end if;
    local := slot at time zone v_zone;
    mark := procjobs.cron_mark(v_fields, v_zone, slot);
    return next;
  end loop;
end
$$;
comment on function procjobs.cron_preview(text, text, timestamptz, integer) is
  'The next n times a cron expression fires after `from` (now), as instants and as the clocks of the zone show them. '
  'mark: gap = its wall time is skipped that day, it fires as soon as the clocks have moved; repeat 1, repeat 2 = this wall time comes twice, '
  'and this is the first or the second. What cannot be read: PJ014.';

create or replace function procjobs.cron_mark(p_fields varbit[], p_zone text, p_slot timestamptz)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_local timestamp := p_slot at time zone p_zone;
  v_past timestamptz := p_slot - interval '26 hours';
  v_far timestamptz := p_slot + interval '26 hours';
begin
  if procjobs.cron_wall(p_fields, v_local) <> v_local then
    return 'gap';
  end if;
  -- The instant of this wall time by the offset of the day before, and by that of the day after.
  v_past := (v_local - ((v_past at time zone p_zone) - (v_past at time zone 'UTC'))) at time zone 'UTC';
  v_far := (v_local - ((v_far at time zone p_zone) - (v_far at time zone 'UTC'))) at time zone 'UTC';
  return case
    when v_past < p_slot and v_past at time zone p_zone = v_local then 'repeat 2'
    when v_far > p_slot and v_far at time zone p_zone = v_local then 'repeat 1'
  end;
end
$$;
comment on function procjobs.cron_mark(varbit[], text, timestamptz) is
  'What procjobs.cron_preview says of a slot: gap, repeat 1, repeat 2 or null.';
