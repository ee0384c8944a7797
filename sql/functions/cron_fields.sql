-- Cron expressions, read into bits, and the wall times that match them; without time zones. Owns nothing, locks nothing.
-- Six values, one bit for each second (60), minute (60), hour (24), day (1 to 31, `L`, `LW`), month (12) and weekday (Sunday
-- first: for each week of the month seven, then seven for `5L`); and one of three flags: 0 hour and minute are fixed,
-- 1 day and weekday must both match, 2 neither day, weekday nor month is restricted.

create or replace function procjobs.cron_fields(p_cron text)
returns varbit[]
language plpgsql
immutable
strict
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text := upper(btrim(p_cron, E' \t\r\n') collate "C");
  v_words text[];
  v_every constant varbit[] := array[repeat('1', 60), repeat('1', 60), repeat('1', 24), repeat('1', 31) || '00',
    repeat('1', 12), repeat('1', 35) || '0000000']::varbit[];
  v_fields varbit[] := v_every;
begin
  v_text := case
    when v_text not like '@%' then v_text
    when v_text = '@HOURLY' then '0 * * * *'
    when v_text in ('@DAILY', '@MIDNIGHT') then '0 0 * * *'
    when v_text = '@WEEKLY' then '0 0 * * 0'
    when v_text = '@MONTHLY' then '0 0 1 * *'
    when v_text in ('@YEARLY', '@ANNUALLY') then '0 0 1 1 *'
    else v_text
  end;
  v_words := regexp_split_to_array(v_text, '\s+');
  if cardinality(v_words) = 5 then
    v_words := '0'::text || v_words;
  elsif cardinality(v_words) <> 6 then
    perform procjobs.raise_invalid_cron(p_cron, case
      when v_text = '' then 'it is empty'
      when v_text like '@%' then format('%s: not one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually', p_cron)
      else format('%s fields instead of five, or six with the seconds first', cardinality(v_words))
    end);
  end if;
  for i in 1..6 loop
    if v_words[i] <> '*' then
      v_fields[i] := procjobs.cron_field(v_words[i], i, p_cron);
    end if;
  end loop;
  v_fields[7] := (
    (v_words[2] not like '*%' and v_words[3] not like '*%')::integer::text
    || (v_words[4] like '*%' or v_words[6] like '*%')::integer
    || (v_words[4] = '*' and v_words[5] = '*' and v_words[6] = '*')::integer
  )::varbit;
  return v_fields;
end
$$;
comment on function procjobs.cron_fields(text) is
  'A cron expression as bits. What cannot be read: PJ014; whether it ever fires is not asked here.';

create or replace function procjobs.cron_field(p_field text, p_number integer, p_cron text)
returns varbit
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_low integer := case when p_number in (4, 5) then 1 else 0 end;
  v_high integer := ('{59,59,23,31,12,7}'::integer[])[p_number];
  v_item text;
  v_bits varbit;
begin
  if p_field ~ '^[0-9]{1,2}$' and p_field::integer between v_low and v_high then
    return procjobs.cron_bits(p_number, p_field::integer, p_field::integer, 1);
  end if;
  v_bits := procjobs.cron_bits(p_number, null, null, 1);
  foreach v_item in array string_to_array(p_field, ',') loop
    v_bits := v_bits | procjobs.cron_item(v_item, p_number, v_low, v_high, p_cron);
  end loop;
  return v_bits;
end
$$;
comment on function procjobs.cron_field(text, integer, text) is
  'One field of a cron expression as bits: 1 seconds, 2 minutes, 3 hours, 4 days, 5 months, 6 weekdays.';

create or replace function procjobs.cron_item(p_item text, p_number integer, p_low integer, p_high integer, p_cron text)
returns varbit
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bits varbit := procjobs.cron_bits(p_number, null, null, 1);
  v_parts text[];
  v_from integer;
  v_to integer;
  v_step integer;
begin
  if p_number = 4 and p_item in ('L', 'LW') then
    return set_bit(v_bits, 29 + length(p_item) + 1, 1);
  elsif p_number = 6 and p_item ~ '^([0-7]|[A-Z]{3})L$' then
    return set_bit(v_bits, 35 + procjobs.cron_value(left(p_item, -1), p_item, p_number, 0, 7, p_cron) % 7, 1);
  elsif p_number = 6 and p_item ~ '^L[0-7]$' then
    return set_bit(v_bits, 35 + right(p_item, 1)::integer % 7, 1);
  elsif p_number = 6 and p_item ~ '^([0-7]|[A-Z]{3})#[1-5]$' then
    v_from := procjobs.cron_value(left(p_item, -2), p_item, p_number, 0, 7, p_cron) % 7;
    return set_bit(v_bits, 7 * (right(p_item, 1)::integer - 1) + v_from, 1);
  end if;
  v_parts := regexp_match(p_item, '^(\*|([0-9]+|[A-Z]+)(-([0-9]+|[A-Z]+))?)(/([0-9]+))?$');
  if v_parts is null then
    perform procjobs.raise_cron_field(p_cron, p_number, p_item, 'cannot be read');
  end if;
  v_from := p_low;
  v_to := p_high;
  if v_parts[2] is not null then
    v_from := procjobs.cron_value(v_parts[2], p_item, p_number, p_low, p_high, p_cron);
    if v_parts[4] is not null then
      v_to := procjobs.cron_value(
        case when p_number = 6 and v_parts[4] = 'SUN' then '7' else v_parts[4] end,
        p_item, p_number, p_low, p_high, p_cron);
    elsif v_parts[6] is null then
      v_to := v_from;
    end if;
  end if;
  if v_from > v_to then
    perform procjobs.raise_cron_field(p_cron, p_number, p_item, format(
      'the range runs backwards; write %s-%s,%s-%s', v_parts[2], p_high, p_low, v_parts[4]));
  end if;
  v_step := case when v_parts[6] is null then 1 when length(v_parts[6]) < 4 then v_parts[6]::integer else 0 end;
  if v_step not between 1 and p_high + 1 - p_low then
    perform procjobs.raise_cron_field(p_cron, p_number, p_item, format(
      'step %s is not between 1 and %s', v_parts[6], p_high + 1 - p_low));
  end if;
  return procjobs.cron_bits(p_number, v_from, v_to, v_step);
end
$$;
comment on function procjobs.cron_item(text, integer, integer, integer, text) is
  'One item of a list in a field: 5, 5-9, 5-9/2, 5/2, *, */2, names; L and LW among days, 5L, L5 and 5#2 among weekdays.';

create or replace function procjobs.cron_value(
  p_word text,
  p_item text,
  p_number integer,
  p_low integer,
  p_high integer,
  p_cron text
)
returns integer
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_value integer := case
    when p_number = 5 then array_position('{JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}'::text[], p_word)
    when p_number = 6 then array_position('{SUN,MON,TUE,WED,THU,FRI,SAT}'::text[], p_word) - 1
  end;
begin
  if v_value is null and p_word ~ '^[0-9]{1,4}$' then
    v_value := p_word::integer;
  end if;
  if v_value is null or v_value not between p_low and p_high then
    perform procjobs.raise_cron_field(p_cron, p_number, p_item, format(
      '%s is not between %s and %s%s', p_word, p_low, p_high,
      case p_number when 5 then ', or JAN to DEC' when 6 then ', or SUN to SAT' else '' end));
  end if;
  return v_value;
end
$$;
comment on function procjobs.cron_value(text, text, integer, integer, integer, text) is
  'A number or a name in a field of a cron expression.';

create or replace function procjobs.cron_bits(p_number integer, p_from integer, p_to integer, p_step integer)
returns varbit
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_low integer := case when p_number in (4, 5) then 1 else 0 end;
  v_width integer := ('{60,60,24,33,12,8}'::integer[])[p_number];
  v_text text := '';
begin
  if p_from is not null then
    v_text := repeat('0', p_from - v_low)
      || substr(repeat(rpad('1', p_step, '0'), p_to - p_from + 1), 1, p_to - p_from + 1);
  end if;
  v_text := rpad(v_text, v_width, '0');
  if p_number = 6 then
    -- Both 0 and 7 are Sunday.
    v_text := repeat(translate(left(v_text, 1)::integer + right(v_text, 1)::integer || '', '2', '1') || substr(v_text, 2, 6), 5)
      || '0000000';
  end if;
  return v_text::varbit;
end
$$;
comment on function procjobs.cron_bits(integer, integer, integer, integer) is
  'The bits of a range with a step in a field of a cron expression; of nothing for nulls.';

create or replace function procjobs.cron_days(p_fields varbit[], p_month date)
returns varbit
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_length integer := (p_month + interval '1 month')::date - p_month;
  v_first integer := extract(dow from p_month);
  v_dom varbit := substring(p_fields[4] from 1 for v_length);
  v_weeks varbit := p_fields[6];
  v_dow varbit := '';
  v_at integer;
begin
  if get_bit(p_fields[4], 31) = 1 then
    v_dom := set_bit(v_dom, v_length - 1, 1);
  end if;
  if get_bit(p_fields[4], 32) = 1 then
    -- The last day of the month, or the Friday before its weekend.
    v_at := (v_first + v_length - 1) % 7;
    v_dom := set_bit(v_dom, v_length - case v_at when 0 then 3 when 6 then 2 else 1 end, 1);
  end if;
  -- Each week of seven days from the first, turned so that it begins with the weekday of the first.
  for i in 0..4 loop
    v_dow := v_dow
      || substring(v_weeks from 7 * i + v_first + 1 for 7 - v_first)
      || substring(v_weeks from 7 * i + 1 for v_first);
  end loop;
  v_dow := substring(v_dow from 1 for v_length);
  if position(B'1' in substring(v_weeks from 36)) > 0 then
    for i in v_length - 7 .. v_length - 1 loop
      if get_bit(v_weeks, 35 + (v_first + i) % 7) = 1 then
        v_dow := set_bit(v_dow, i, 1);
      end if;
    end loop;
  end if;
  return case get_bit(p_fields[7], 1) when 1 then v_dom & v_dow else v_dom | v_dow end;
end
$$;
comment on function procjobs.cron_days(varbit[], date) is
  'The days of a month, given by its first, on which fields of procjobs.cron_fields fire: one bit a day.';

create or replace function procjobs.cron_time(p_fields varbit[], p_from integer)
returns integer
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hour integer := p_from / 3600;
  v_minute integer := p_from / 60 % 60;
  v_next integer;
  v_at integer;
begin
  if get_bit(p_fields[3], v_hour) = 1 then
    if get_bit(p_fields[2], v_minute) = 1 then
      v_at := position(B'1' in substring(p_fields[1] from p_from % 60 + 1));
      if v_at > 0 then
        return p_from + v_at - 1;
      end if;
    end if;
    v_next := position(B'1' in substring(p_fields[2] from v_minute + 2));
    if v_next > 0 then
      return v_hour * 3600 + (v_minute + v_next) * 60 + position(B'1' in p_fields[1]) - 1;
    end if;
  end if;
  v_next := position(B'1' in substring(p_fields[3] from v_hour + 2));
  if v_next > 0 then
    return (v_hour + v_next) * 3600 + position(B'1' in p_fields[2]) * 60 - 60 + position(B'1' in p_fields[1]) - 1;
  end if;
  return null;
end
$$;
comment on function procjobs.cron_time(varbit[], integer) is
  'The first time of day, in seconds since midnight and not before p_from, that matches; null when there is none.';

create or replace function procjobs.cron_wall(p_fields varbit[], p_from timestamp)
returns timestamp
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_date date := p_from::date;
  v_time integer := procjobs.cron_time(p_fields, extract(epoch from p_from - p_from::date)::integer);
  v_month date := date_trunc('month', p_from);
  v_day integer := extract(day from p_from);
  v_year integer := extract(year from p_from);
  v_number integer := extract(month from p_from);
  v_at integer;
begin
  if get_bit(p_fields[7], 2) = 1 then
    return v_date + make_interval(secs => coalesce(v_time, 86400 + procjobs.cron_time(p_fields, 0)));
  end if;
  if v_time is null then
    v_day := v_day + 1;
  end if;
  -- 29 February falls on a given weekday once in 28 years, and in 40 where a century has no leap year.
  for i in 0..50 * 12 loop
    if get_bit(p_fields[5], v_number - 1) = 1 then
      v_month := make_date(v_year, v_number, 1);
      v_at := position(B'1' in substring(procjobs.cron_days(p_fields, v_month) from v_day));
      if v_at > 0 then
        v_month := v_month + v_day + v_at - 2;
        return v_month + make_interval(
          secs => case when v_month = v_date then v_time else procjobs.cron_time(p_fields, 0) end);
      end if;
    end if;
    v_day := 1;
    v_year := v_year + v_number / 12;
    v_number := v_number % 12 + 1;
  end loop;
  return null;
end
$$;
comment on function procjobs.cron_wall(varbit[], timestamp) is
  'The first wall time, in whole seconds and not before p_from, that matches fields of procjobs.cron_fields; null when there is none within 50 years.';

create or replace function procjobs.raise_cron_field(p_cron text, p_number integer, p_item text, p_problem text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_invalid_cron(p_cron, format(
    '%s "%s": %s', ('{second,minute,hour,day of month,month,day of week}'::text[])[p_number], p_item, p_problem));
end
$$;
comment on function procjobs.raise_cron_field(text, integer, text, text) is 'Raises PJ014 for an item of a field.';

create or replace function procjobs.raise_invalid_cron(p_cron text, p_detail text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'cron "%" cannot be read', p_cron
    using errcode = 'PJ014',
          detail = p_detail,
          hint = 'Write minute, hour, day of month, month and day of week, with seconds in front if there are six: 30 8 * * MON-FRI, */15 * * * *, 0 0 L * *, or @hourly and the like.';
end
$$;
comment on function procjobs.raise_invalid_cron(text, text) is 'Raises PJ014 for an expression.';

create or replace function procjobs.raise_cron_never(p_cron text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'cron "%" never fires', p_cron
    using errcode = 'PJ014',
          detail = 'day of month, month and day of week do not meet within 50 years',
          hint = 'No month it names has such a day. The last day of a month is L: 0 0 L 2 *.';
end
$$;
comment on function procjobs.raise_cron_never(text) is 'Raises PJ014 for an expression that no date meets.';
