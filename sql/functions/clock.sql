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

create or replace function procjobs.time_set()
returns timestamptz
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when procjobs.may_set_clock() or n.at between n.began and clock_timestamp() then n.at
    else n.began
  end
  from (
    select current_setting('procjobs.now', true)::timestamptz as at, greatest(statement_timestamp(), transaction_timestamp()) as began
  ) n
$$;
comment on function procjobs.time_set() is
  'clock() where procjobs.now is set. Who may not set the clock can say at most that time went on since the statement began, as it did: '
  'the end of a run in its own transaction is now.';

create or replace function procjobs.clock()
returns timestamptz
language sql
stable
parallel safe
as $$
  select case
    when coalesce(pg_catalog.current_setting('procjobs.now', true), '') = ''
      -- In a procedure that commits, the statement is the CALL of an hour ago; what began last is the transaction.
      then greatest(pg_catalog.statement_timestamp(), pg_catalog.transaction_timestamp())
    else procjobs.time_set()
  end
$$;
comment on function procjobs.clock() is
  'The time procjobs goes by: when the statement began, or the transaction in a procedure that commits; or the setting procjobs.now where a test sets it; only the owner and superusers can. '
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

create or replace function procjobs.stopwatch()
returns double precision
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select extract(epoch from clock_timestamp())::double precision
$$;
comment on function procjobs.stopwatch() is
  'Seconds, for how long something takes: the difference of two. Time itself comes from clock(); a test that sets it does not stop this one.';
