-- What letters cannot be written without.
-- Owns:        nothing.
-- Lock order:  none.

create or replace function procjobs.letter_fields()
returns table (template text, field text, type text)
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select v.template, v.field, v.type
  from (values
    ('alert', 'level', 'string'),
    ('alert', 'title', 'string'),
    ('alert', 'body', 'string'),
    ('daily_report', 'for_day', 'string'),
    ('daily_report', 'figures', 'array'),
    ('event_reminder', 'title', 'string'),
    ('event_reminder', 'starts_at', 'string'),
    ('invoice', 'number', 'string'),
    ('invoice', 'issued_on', 'string'),
    ('invoice', 'due_on', 'string'),
    ('invoice', 'currency', 'string'),
    ('invoice', 'lines', 'array'),
    ('invoice', 'total', 'string'),
    ('payment_reminder', 'project', 'string'),
    ('payment_reminder', 'amount', 'string'),
    ('payment_reminder', 'currency', 'string'),
    ('payment_reminder', 'paid_on', 'string'),
    ('payment_reminder', 'days', 'number'),
    ('reengagement', 'body', 'string'),
    ('reengagement', 'action_url', 'address'),
    ('report_ready', 'report', 'string'),
    ('report_ready', 'url', 'address'),
    ('tips', 'tips', 'array'),
    ('welcome', 'body', 'string')
  ) v (template, field, type)
$$;
comment on function procjobs.letter_fields() is
  'Fields of a letter''s content that have to be there, and their types in JSON; address: a string that is an http or https address, without '
  'which the letter would lead nowhere. Amounts are strings, so that none is rounded.';

create or replace function procjobs.is_web_address(p_address text)
returns boolean
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select p_address ~* '^https?://[^[:space:]"''<>]+$' collate "C"
$$;
comment on function procjobs.is_web_address(text) is
  'Whether a mail may link to it: letters leave out what is no plain http or https address. Null for null.';

create or replace function procjobs.letter_field_problems(p_template text, p_content jsonb)
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select case
      when p_content -> f.field is null then format('content.%s is missing', f.field)
      when jsonb_typeof(p_content -> f.field) = j.type then format('content.%s is not an http or https address', f.field)
      else format('content.%s is %s, not a%s %s', f.field, jsonb_typeof(p_content -> f.field),
        case j.type when 'array' then 'n' else '' end, j.type)
    end
    from procjobs.letter_fields() f
    cross join lateral (select case f.type when 'address' then 'string' else f.type end as type) j
    where f.template = p_template
      and (
        jsonb_typeof(p_content -> f.field) is distinct from j.type
        or f.type = 'address' and not procjobs.is_web_address(p_content ->> f.field)
      )
    order by f.field
  )
$$;
comment on function procjobs.letter_field_problems(text, jsonb) is
  'What a letter''s content lacks, one sentence each; empty if nothing.';
