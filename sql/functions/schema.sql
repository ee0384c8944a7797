-- JSON Schema: does a value fit? The part of draft 2020-12 that pydantic writes for a Python signature.
-- Owns:        nothing. Pure functions of their arguments, apart from the clock settings that dates are read with.
-- Lock order:  none.
-- Values never appear in a problem, only their place, type and length: problems end up in logs, arguments must not.
-- Keywords: $ref into the same document, anyOf, oneOf, allOf, not, enum, const, type, properties, required,
-- additionalProperties, patternProperties, propertyNames, min/maxProperties, items, prefixItems, min/maxItems, uniqueItems,
-- minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, min/maxLength, pattern, format. Others are ignored.

create or replace function procjobs.schema_problems(p_schema jsonb, p_value jsonb)
returns text[]
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.value_problems(p_schema, p_schema, p_value, '', 0)
$$;
comment on function procjobs.schema_problems(jsonb, jsonb) is
  'What is wrong with a value by a JSON Schema (the keywords that pydantic writes), one sentence a problem with its path; empty if it fits.';

create or replace function procjobs.value_problems(p_root jsonb, p_schema jsonb, p_value jsonb, p_path text, p_depth integer)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text := jsonb_typeof(p_value);
  v_type jsonb := p_schema -> 'type';
  v_here text := coalesce(nullif(p_path, ''), 'the value');
  v_problems text[] := '{}'::text[];
begin
  if jsonb_typeof(p_schema) = 'boolean' then
    return case when p_schema = 'true' then v_problems else array[v_here || ' is not expected'] end;
  elsif p_depth > 250 then
    return array[v_here || ' cannot be checked: the schema refers to itself without end'];
  end if;

  if v_type is not null and not procjobs.has_type(p_value, v_type) then
    return array[format('%s must be %s, is %s', v_here, procjobs.schema_words(p_root, p_schema, 0), v_kind)];
  end if;
  if p_schema ? '$ref' then
    v_problems := procjobs.value_problems(
      p_root, procjobs.schema_target(p_root, p_schema ->> '$ref'), p_value, p_path, p_depth + 1);
  end if;
  if p_schema ? 'const' and p_value <> p_schema -> 'const'
    or p_schema ? 'enum' and not exists (select from jsonb_array_elements(p_schema -> 'enum') e where e.value = p_value)
  then
    v_problems := v_problems || format('%s must be %s', v_here, procjobs.schema_words(p_root, p_schema, 0));
  end if;

  v_problems := v_problems || case v_kind
    when 'object' then procjobs.object_problems(p_root, p_schema, p_value, p_path, p_depth)
    when 'array' then procjobs.array_problems(p_root, p_schema, p_value, p_path, p_depth)
    when 'string' then procjobs.string_problems(p_schema, p_value #>> '{}', v_here)
    when 'number' then procjobs.number_problems(p_schema, p_value::numeric, v_here)
    else '{}'::text[]
  end;
  if p_schema ?| '{oneOf,allOf,not}' or p_schema ? 'anyOf' and not procjobs.fits_plainly(p_schema -> 'anyOf', v_kind) then
    v_problems := v_problems || procjobs.choice_problems(p_root, p_schema, p_value, p_path, p_depth);
  end if;
  return v_problems;
end
$$;
comment on function procjobs.value_problems(jsonb, jsonb, jsonb, text, integer) is
  'schema_problems for a part p_value of the whole, found at p_path, by the part p_schema of the schema p_root.';

create or replace function procjobs.has_type(p_value jsonb, p_type jsonb)
returns boolean
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_type) = 'array' then
    return exists (select from jsonb_array_elements(p_type) t where procjobs.has_type(p_value, t.value));
  elsif p_type = '"integer"' and jsonb_typeof(p_value) = 'number' then
    return trunc(p_value::numeric) = p_value::numeric;
  end if;
  return jsonb_typeof(p_value) = p_type #>> '{}';
end
$$;
comment on function procjobs.has_type(jsonb, jsonb) is
  'Whether a value is of a JSON Schema type or of one of an array of types; 1.0 is an integer, as in the standard.';

create or replace function procjobs.schema_target(p_root jsonb, p_ref text)
returns jsonb
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    case
      when p_ref = '#' then p_root
      when p_ref like '#/%' then (
        select p_root #> array_agg(replace(replace(part, '~1', '/'), '~0', '~') order by n)
        from string_to_table(substr(p_ref, 3), '/') with ordinality as s (part, n)
      )
    end,
    'false'
  )
$$;
comment on function procjobs.schema_target(jsonb, text) is
  'The part of a schema that a $ref points to; false, which nothing fits, if it points to nothing.';

create or replace function procjobs.object_problems(p_root jsonb, p_schema jsonb, p_value jsonb, p_path text, p_depth integer)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
  v_item jsonb;
  v_sub jsonb;
  v_path text;
  v_patterned boolean := p_schema ?| '{patternProperties,propertyNames}';
  v_problems text[] := '{}'::text[];
begin
  for v_key in
    select r.value
    from jsonb_array_elements_text(p_schema -> 'required') r
    where not p_value ? r.value
    limit 20
  loop
    v_problems := v_problems || (procjobs.path_to(p_path, v_key) || ' is missing');
  end loop;

  for v_key, v_item in select e.key, e.value from jsonb_each(p_value) e loop
    exit when cardinality(v_problems) >= 20;
    v_sub := coalesce(p_schema #> array['properties', v_key], case when not v_patterned then p_schema -> 'additionalProperties' end);
    -- A plain type, which most arguments have, is judged here without a further call.
    continue when v_sub is null and not v_patterned;
    continue when procjobs.is_plain(v_sub) and procjobs.has_type(v_item, v_sub -> 'type');
    v_path := procjobs.path_to(p_path, v_key);
    if v_patterned then
      v_problems := v_problems || procjobs.patterned_problems(p_root, p_schema, v_key, v_item, v_path, p_depth);
    end if;
    if v_sub is not null then
      v_problems := v_problems || procjobs.value_problems(p_root, v_sub, v_item, v_path, p_depth + 1);
    end if;
  end loop;

  if p_schema ?| '{minProperties,maxProperties}' then
    v_problems := v_problems || procjobs.count_problems(
      p_schema, (select count(*) from jsonb_object_keys(p_value)), coalesce(nullif(p_path, ''), 'the value'),
      'minProperties', 'maxProperties', 'entries');
  end if;
  return v_problems;
end
$$;
comment on function procjobs.object_problems(jsonb, jsonb, jsonb, text, integer) is
  'value_problems for the entries of an object: missing, unexpected and unfit ones; at most some twenty are listed.';

create or replace function procjobs.is_plain(p_schema jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select not p_schema operator(pg_catalog.?|) '{
    $ref, anyOf, oneOf, allOf, not, enum, const,
    properties, required, additionalProperties, patternProperties, propertyNames, minProperties, maxProperties,
    items, prefixItems, minItems, maxItems, uniqueItems,
    minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, minLength, maxLength, pattern, format
  }'
$$;
comment on function procjobs.is_plain(jsonb) is
  'Whether a schema demands nothing but a type. Without a SET clause, so that it is inlined.';

create or replace function procjobs.fits_plainly(p_forms jsonb, p_kind text)
returns boolean
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select
    from jsonb_array_elements(p_forms) f
    where f.value ->> 'type' = p_kind
      and procjobs.is_plain(f.value)
  );
end
$$;
comment on function procjobs.fits_plainly(jsonb, text) is
  'Whether one of several forms demands nothing but this type: the quick answer for what may be null.';

create or replace function procjobs.patterned_problems(
  p_root jsonb, p_schema jsonb, p_key text, p_item jsonb, p_path text, p_depth integer
)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pattern text;
  v_sub jsonb;
  v_known boolean := coalesce(p_schema -> 'properties' ? p_key, false);
  v_problems text[] := '{}'::text[];
begin
  if p_schema ? 'propertyNames' then
    v_problems := procjobs.value_problems(
      p_root, p_schema -> 'propertyNames', to_jsonb(p_key), 'the name of ' || p_path, p_depth + 1);
  end if;
  for v_pattern, v_sub in select e.key, e.value from jsonb_each(p_schema -> 'patternProperties') e loop
    if procjobs.fits_pattern(p_key, v_pattern) then
      v_known := true;
      v_problems := v_problems || procjobs.value_problems(p_root, v_sub, p_item, p_path, p_depth + 1);
    end if;
  end loop;
  if not v_known and p_schema ? 'additionalProperties' then
    v_problems := v_problems || procjobs.value_problems(
      p_root, p_schema -> 'additionalProperties', p_item, p_path, p_depth + 1);
  end if;
  return v_problems;
end
$$;
comment on function procjobs.patterned_problems(jsonb, jsonb, text, jsonb, text, integer) is
  'value_problems for one entry of an object whose schema says something about the names of entries.';

create or replace function procjobs.array_problems(p_root jsonb, p_schema jsonb, p_value jsonb, p_path text, p_depth integer)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_here text := coalesce(nullif(p_path, ''), 'the value');
  v_prefix jsonb := coalesce(p_schema -> 'prefixItems', '[]');
  v_items jsonb := p_schema -> 'items';
  v_plain text := case when procjobs.is_plain(v_items) then v_items ->> 'type' end;
  v_item jsonb;
  v_sub jsonb;
  v_at integer := -1;
  v_problems text[] := '{}'::text[];
begin
  if p_schema ?| '{minItems,maxItems}' then
    v_problems := procjobs.count_problems(p_schema, jsonb_array_length(p_value), v_here, 'minItems', 'maxItems', 'items');
  end if;
  if p_schema -> 'uniqueItems' = 'true'
    and (select count(*) > count(distinct e.value) from jsonb_array_elements(p_value) e)
  then
    v_problems := v_problems || (v_here || ' must not hold an item twice');
  end if;

  if v_items is not null or v_prefix <> '[]' then
    for v_item in select e.value from jsonb_array_elements(p_value) e loop
      exit when cardinality(v_problems) >= 20;
      v_at := v_at + 1;
      continue when jsonb_typeof(v_item) = v_plain and v_prefix = '[]';
      v_sub := coalesce(v_prefix -> v_at, v_items);
      if v_sub is not null then
        v_problems := v_problems || procjobs.value_problems(
          p_root, v_sub, v_item, format('%s[%s]', p_path, v_at), p_depth + 1);
      end if;
    end loop;
  end if;
  return v_problems;
end
$$;
comment on function procjobs.array_problems(jsonb, jsonb, jsonb, text, integer) is
  'value_problems for the items of an array; at most some twenty are listed.';

create or replace function procjobs.choice_problems(p_root jsonb, p_schema jsonb, p_value jsonb, p_path text, p_depth integer)
returns text[]
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_here text := coalesce(nullif(p_path, ''), 'the value');
  v_word text;
  v_branch jsonb;
  v_found text[];
  v_nearest text[];
  v_fitting integer;
  v_problems text[] := '{}'::text[];
begin
  for v_branch in select b.value from jsonb_array_elements(p_schema -> 'allOf') b loop
    v_problems := v_problems || procjobs.value_problems(p_root, v_branch, p_value, p_path, p_depth + 1);
  end loop;
  if p_schema ? 'not' and procjobs.value_problems(p_root, p_schema -> 'not', p_value, p_path, p_depth + 1) = '{}' then
    v_problems := v_problems || (v_here || ' has a value that is not allowed');
  end if;

  foreach v_word in array '{anyOf,oneOf}'::text[] loop
    continue when not p_schema ? v_word;
    v_fitting := 0;
    v_nearest := null;
    for v_branch in select b.value from jsonb_array_elements(p_schema -> v_word) b loop
      v_found := procjobs.value_problems(p_root, v_branch, p_value, p_path, p_depth + 1);
      v_fitting := v_fitting + (v_found = '{}')::integer;
      exit when v_fitting = 1 and v_word = 'anyOf';
      -- Of several forms the one that is nearly met tells most; that the type is another tells nothing.
      if not (starts_with(v_found[1], v_here || ' must be ') and v_found[1] like '%, is ' || jsonb_typeof(p_value))
        and (v_nearest is null or cardinality(v_found) < cardinality(v_nearest))
      then
        v_nearest := v_found;
      end if;
    end loop;
    v_problems := v_problems || case
      when v_fitting = 1 then '{}'::text[]
      when v_fitting > 1 then array[v_here || ' fits several forms, of which it must be one']
      else coalesce(v_nearest, array[format(
        '%s must be %s, is %s', v_here, procjobs.schema_words(p_root, p_schema, 0), jsonb_typeof(p_value))])
    end;
  end loop;
  return v_problems;
end
$$;
comment on function procjobs.choice_problems(jsonb, jsonb, jsonb, text, integer) is
  'value_problems for anyOf, oneOf, allOf and not; of forms that all do not fit the nearest one is explained.';

create or replace function procjobs.path_to(p_path text, p_key text)
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_key !~ '^[[:alpha:]_][[:alnum:]_-]{0,99}$' then format('%s[%s]', p_path, to_json(left(p_key, 100)))
    when p_path = '' then p_key
    else p_path || '.' || p_key
  end;
end
$$;
comment on function procjobs.path_to(text, text) is 'The path of an entry: to.address, items[2].price, ["an odd name"].';

create or replace function procjobs.schema_words(p_root jsonb, p_schema jsonb, p_depth integer)
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := case when jsonb_typeof(p_schema -> 'type') = 'string' then p_schema ->> 'type' end;
  v_forms jsonb := coalesce(p_schema -> 'anyOf', p_schema -> 'oneOf', case when v_type is null then p_schema -> 'type' end);
begin
  if p_depth > 5 or p_schema in ('true', '{}') or p_schema is null then
    return 'any';
  elsif p_schema ? 'const' then
    return p_schema ->> 'const';
  elsif p_schema ? 'enum' then
    return (select string_agg(e.value::text, ' or ') from jsonb_array_elements(p_schema -> 'enum') e);
  elsif p_schema ? '$ref' then
    return procjobs.schema_words(p_root, procjobs.schema_target(p_root, p_schema ->> '$ref'), p_depth + 1);
  elsif v_forms is not null then
    return (
      select string_agg(w.words, ' or ' order by w.n)
      from (
        select min(f.n) as n,
          case jsonb_typeof(f.value)
            when 'string' then f.value #>> '{}'
            else procjobs.schema_words(p_root, f.value, p_depth + 1)
          end as words
        from jsonb_array_elements(v_forms) with ordinality as f (value, n)
        group by 2
      ) w
    );
  elsif v_type = 'array' and coalesce(p_schema -> 'items', 'true') not in ('true', 'false') then
    return 'array of ' || procjobs.schema_words(p_root, p_schema -> 'items', p_depth + 1);
  elsif v_type = 'object' and p_schema ? 'properties' then
    return coalesce(p_schema ->> 'title', 'object');
  end if;
  return coalesce(case when v_type = 'string' then p_schema ->> 'format' end, v_type, 'any');
end
$$;
comment on function procjobs.schema_words(jsonb, jsonb, integer) is
  'What a schema asks for, in a few words: integer, string or null, array of date.';
