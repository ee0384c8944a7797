-- Schedules and alerts for the command line and the pages. Owns nothing, locks nothing.

create or replace function procjobs.list_schedules(p_name text default null)
returns table (
  name text, task text, state text, times text, timezone text, next_slot timestamptz, next_local timestamp, last_slot timestamptz,
  last_outcome text, last_run timestamptz, last_status text, last_took interval, last_rows bigint, missed integer, "group" text,
  tenant text, parent text, source text, overlap text, misfire text, jitter interval, queue text, priority integer, args jsonb,
  paused_at timestamptz, paused_by text, reason text, fault text, description text, created_at timestamptz, updated_at timestamptz,
  updated_by text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select l.*
  from procjobs.schedule_list l
  where p_name is null
     or l.name = p_name
  order by l.next_slot nulls last, l.name
$$;
comment on function procjobs.list_schedules(text) is 'Schedules, those that fire next first; with a name that one.';

create or replace function procjobs.list_schedule_history(p_name text default null, p_max_rows integer default 50)
returns table (
  schedule text, kind text, slot timestamptz, outcome text, reason text, missed boolean, at timestamptz, by text, job_id bigint,
  status text, started_at timestamptz, ended_at timestamptz, took interval, attempts integer, rows bigint, error text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select h.*
  from procjobs.schedule_history h
  where p_name is null
     or h.schedule = p_name
  order by h.slot desc
  limit p_max_rows
$$;
comment on function procjobs.list_schedule_history(text, integer) is 'The last slots and runs, of one schedule or of all, newest first.';

create or replace function procjobs.list_alerts(p_closed_too boolean default false, p_max_rows integer default 100)
returns table (
  id bigint, kind text, subject text, message text, details jsonb, first_at timestamptz, last_at timestamptz, times integer,
  closed_at timestamptz, closed_by text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select a.*
  from procjobs.alerts a
  where p_closed_too
     or a.closed_at is null
  order by a.closed_at is not null, a.last_at desc
  limit p_max_rows
$$;
comment on function procjobs.list_alerts(boolean, integer) is 'What somebody should look at, newest first; with p_closed_too also what is over.';
