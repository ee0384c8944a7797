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
    ('reengagement', 'action_url', 'string'),
    ('report_ready', 'report', 'string'),
    ('report_ready', 'url', 'string'),
    ('tips', 'tips', 'array'),
    ('welcome', 'body', 'string')
  ) v (template, field, type)
$$;
comment on function procjobs.letter_fields() is
  'Fields of a letter''s content that have to be there, and their types in JSON. Amounts are strings, so that none is rounded.';

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
      else format('content.%s is %s, not a%s %s', f.field, jsonb_typeof(p_content -> f.field),
        case f.type when 'array' then 'n' else '' end, f.type)
    end
    from procjobs.letter_fields() f
    where f.template = p_template
      and jsonb_typeof(p_content -> f.field) is distinct from f.type
    order by f.field
  )
$$;
comment on function procjobs.letter_field_problems(text, jsonb) is
  'What a letter''s content lacks, one sentence each; empty if nothing.';
