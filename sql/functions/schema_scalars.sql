-- JSON Schema, continued: strings, numbers and lengths.
-- Owns:        nothing.
-- Lock order:  none.

create or replace function procjobs.count_problems(
  p_schema jsonb, p_count bigint, p_here text, p_least text, p_most text, p_unit text
)
returns text[]
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  return array_remove(array[
    case when p_count < (p_schema ->> p_least)::numeric
      then format('%s must have at least %s %s, has %s', p_here, p_schema ->> p_least, p_unit, p_count) end,
    case when p_count > (p_schema ->> p_most)::numeric
      then format('%s must have at most %s %s, has %s', p_here, p_schema ->> p_most, p_unit, p_count) end
  ], null);
end
$$;
comment on function procjobs.count_problems(jsonb, bigint, text, text, text, text) is
  'Whether a length is between what two keywords of a schema say.';

create or replace function procjobs.number_problems(p_schema jsonb, p_number numeric, p_here text)
returns text[]
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if not p_schema ?| '{minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf}' then
    return '{}'::text[];
  end if;
  return array_remove(array[
    case when p_number < (p_schema -> 'minimum')::numeric
      then format('%s must be at least %s', p_here, p_schema -> 'minimum') end,
    case when p_number <= (p_schema -> 'exclusiveMinimum')::numeric
      then format('%s must be more than %s', p_here, p_schema -> 'exclusiveMinimum') end,
    case when p_number > (p_schema -> 'maximum')::numeric
      then format('%s must be at most %s', p_here, p_schema -> 'maximum') end,
    case when p_number >= (p_schema -> 'exclusiveMaximum')::numeric
      then format('%s must be less than %s', p_here, p_schema -> 'exclusiveMaximum') end,
    case when mod(p_number, nullif((p_schema -> 'multipleOf')::numeric, 0)) <> 0
      then format('%s must be a multiple of %s', p_here, p_schema -> 'multipleOf') end
  ], null);
end
$$;
comment on function procjobs.number_problems(jsonb, numeric, text) is 'value_problems for the size of a number.';

create or replace function procjobs.string_problems(p_schema jsonb, p_text text, p_here text)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := '{}'::text[];
begin
  if p_schema ?| '{minLength,maxLength}' then
    v_problems := procjobs.count_problems(p_schema, length(p_text), p_here, 'minLength', 'maxLength', 'characters');
  end if;
  if p_schema ? 'pattern' and not procjobs.fits_pattern(p_text, p_schema ->> 'pattern') then
    v_problems := v_problems || format('%s must match %s', p_here, p_schema ->> 'pattern');
  end if;
  if p_schema ? 'format' and not procjobs.fits_format(p_text, p_schema ->> 'format') then
    v_problems := v_problems || format('%s must be a %s', p_here, p_schema ->> 'format');
  end if;
  return v_problems;
end
$$;
comment on function procjobs.string_problems(jsonb, text, text) is
  'value_problems for a string: length in characters, pattern, format.';

create or replace function procjobs.fits_pattern(p_text text, p_pattern text)
returns boolean
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  -- What PostgreSQL reads differently from Python is left to the worker: some escapes, named groups, classes beyond ASCII.
  if p_pattern ~ '\\[bBAZzGpPuUxNkKmMyYc0-9]|\(\?[^:=!]|\{,|\[[:.=]|^\*\*\*|\[\^?\]|[*+?}][+]'
    or p_text ~ '[^\x01-\x7f]' and p_pattern ~ '\\[dwsDWS]'
    or p_text ~ '\n'
  then
    return true;
  end if;
  return p_text ~ p_pattern;
exception
  when invalid_regular_expression then
    return true;
end
$$;
comment on function procjobs.fits_pattern(text, text) is
  'Whether a text matches a pattern anywhere. True where PostgreSQL would read the pattern differently from Python: the worker decides then.';

create or replace function procjobs.fits_format(p_text text, p_format text)
returns boolean
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
as $$
declare
  c_time constant text := '([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?([Zz]|[+-](0\d|1[0-5]):?[0-5]\d)?$';
begin
  case p_format
    when 'date' then
      return p_text ~ '^\d{4}-\d\d-\d\d$' and p_text::date is not null;
    when 'date-time' then
      return p_text ~ ('^\d{4}-\d\d-\d\d[Tt ]' || c_time) and left(p_text, 10)::date is not null;
    when 'time' then
      return p_text ~ ('^' || c_time);
    when 'uuid' then
      return p_text ~* '^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$';
    when 'email' then
      return p_text ~ '^[^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$';
    when 'duration' then
      return p_text ~ '^[-+]?P(?=.)(\d+W)?(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?$'
        or p_text ~ '^[-+]?(\d+ days?,? ?)?\d\d?:[0-5]\d(:[0-5]\d(\.\d+)?)?$';
    else
      return true;
  end case;
exception
  when datetime_field_overflow or invalid_datetime_format then
    return false;
end
$$;
comment on function procjobs.fits_format(text, text) is
  'Whether a text is a date, date-time, time, uuid, email or duration, as pydantic reads them; true for other formats.';
