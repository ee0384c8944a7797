-- The clock: the only source of time in procjobs. Owns nothing, locks nothing.

create or replace function procjobs.clock()
returns timestamptz
language sql
stable
parallel safe
as $$
  select coalesce(
    nullif(pg_catalog.current_setting('procjobs.now', true), '')::timestamptz,
    pg_catalog.statement_timestamp()
  )
$$;
comment on function procjobs.clock() is
  'The time procjobs goes by: the database''s, or the setting procjobs.now where a test sets it. '
  'Without a SET clause, so that the planner can inline it.';
