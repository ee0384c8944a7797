-- The clock: the only source of time in procjobs. Owns nothing, locks nothing.

create or replace function procjobs.may_set_clock()
returns boolean
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(session_user, n.nspowner, 'member')
  from pg_namespace n
  where n.nspname = 'procjobs'
$$;
comment on function procjobs.may_set_clock() is
  'Whether procjobs.now counts for who logged in: members of the owner and superusers. Anybody can set it; a worker''s login that '
  'could move the clock could have workers declared dead and the history dropped.';

create or replace function procjobs.clock()
returns timestamptz
language sql
stable
parallel safe
as $$
  select case
    when coalesce(pg_catalog.current_setting('procjobs.now', true), '') = '' then pg_catalog.statement_timestamp()
    when procjobs.may_set_clock() then pg_catalog.current_setting('procjobs.now', true)::timestamptz
    else pg_catalog.statement_timestamp()
  end
$$;
comment on function procjobs.clock() is
  'The time procjobs goes by: the database''s, or the setting procjobs.now where a test sets it; only the owner and superusers can. '
  'Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.wall_clock()
returns timestamptz
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select case
    when coalesce(current_setting('procjobs.now', true), '') <> '' then procjobs.clock()
    else clock_timestamp()
  end
$$;
comment on function procjobs.wall_clock() is
  'The time now, not when the statement began: for what is decided after waiting for a lock. Obeys procjobs.now as clock() does.';
