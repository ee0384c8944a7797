-- Urgency of notifications: which there are, and which comes first.
-- Owns:        nothing.
-- Lock order:  none.

create or replace function procjobs.urgency_priority(p_urgency text)
returns integer
language sql
immutable
parallel safe
as $$
  select case p_urgency when 'urgent' then 10 when 'low' then -10 else 0 end
$$;
comment on function procjobs.urgency_priority(text) is
  'Priority of the queue job of a notification. Without a SET clause, so that the planner can inline it.';

create or replace function procjobs.urgency_problem(p_urgency text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select format('urgency %s is none of urgent, normal, low', coalesce(quote_literal(p_urgency), 'null'))
  where p_urgency is null or p_urgency not in ('urgent', 'normal', 'low')
$$;
comment on function procjobs.urgency_problem(text) is 'Why this is no urgency; null if it is one.';
