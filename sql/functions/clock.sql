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

create or replace function procjobs.wall_clock()
returns timestamptz
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(nullif(current_setting('procjobs.now', true), '')::timestamptz, clock_timestamp())
$$;
comment on function procjobs.wall_clock() is
  'The time now, not when the statement began: for what is decided after waiting for a lock. Obeys procjobs.now as clock() does.';
