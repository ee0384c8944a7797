-- Retention of the application's tables: listed for the command line; which tables to vacuum; files that no row names.
-- Owns:        table_retention_log.vacuum_wanted and vacuumed_at.
-- Lock order:  table_retention_log, the rows of one policy.

create or replace function procjobs.list_table_policies()
returns table (
  name text, table_name text, column_name text, keep interval, condition text, action text, assignments jsonb, enabled boolean, run_as text,
  last_run_at timestamptz, last_run text, last_rows bigint, fault text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    t.name, t.table_name, t.column_name, t.keep, t.condition, t.action, t.assignments, t.enabled, t.run_as,
    t.last_run_at, t.last_run, t.last_rows, t.fault
  from procjobs.table_retention t
  order by t.name
$$;
comment on function procjobs.list_table_policies() is 'procjobs.table_retention, by name.';

create or replace function procjobs.list_table_runs(p_policy text default null, p_max_rows integer default 50)
returns table (
  id bigint, policy text, state text, actor text, began_at timestamptz, took interval, rows bigint, percent integer, batches integer,
  slowest interval, passed_over bigint, referenced jsonb, error text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    r.id, r.policy, r.state, r.actor, r.began_at, r.took, r.rows, r.percent, r.batches, r.slowest, r.passed_over, r.referenced, r.error
  from procjobs.table_retention_runs r
  where p_policy is null
     or r.policy = p_policy
  order by r.id desc
  limit greatest(p_max_rows, 0)
$$;
comment on function procjobs.list_table_runs(text, integer) is 'procjobs.table_retention_runs, of one policy or all, the newest first.';

create or replace function procjobs.tables_to_vacuum(p_policy text default null)
returns table (policy text, table_name text, run_as text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.name, l.leaf::text, p.run_as
  from procjobs.table_policies p
  cross join procjobs.table_leaves(procjobs.find_table(p.table_name)) l
  where (p_policy is null or p.name = p_policy)
    and exists (
      select
      from procjobs.table_retention_log r
      where r.policy = p.name
        and r.vacuum_wanted
        and r.vacuumed_at is null
    )
  order by 1, 2
$$;
comment on function procjobs.tables_to_vacuum(text) is
  'Tables from which a run deleted much, and that were not vacuumed since. Definer: the worker role has no rights on tables.';

create or replace function procjobs.note_vacuum(p_policy text)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.table_retention_log r
  set vacuumed_at = procjobs.clock()
  where r.policy = p_policy
    and r.vacuum_wanted
    and r.vacuumed_at is null
$$;
comment on function procjobs.note_vacuum(text) is
  'Notes that the table of a policy was vacuumed. Definer: the worker role has no rights on tables.';

create or replace function procjobs.unreferenced_files(p_keys text[])
returns text[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_any boolean;
  v_keys text[];
begin
  perform procjobs.require_host('host_uploads');
  select exists (select from procjobs.host_uploads) into v_any;
  if not v_any then
    raise exception 'host_uploads names no file at all'
      using errcode = 'PJ012',
            detail = 'every file of the storage would be an orphan',
            hint = 'Let the view procjobs.host_uploads give the key of each file that a row refers to, then run procjobs migrate.';
  end if;
  select coalesce(array_agg(k.key), '{}') into v_keys
  from unnest(p_keys) as k(key)
  where not exists (
    select
    from procjobs.host_uploads u
    where u.key = k.key
  );
  return v_keys;
end
$$;
comment on function procjobs.unreferenced_files(text[]) is
  'Those of these files that no row of the application names (host_uploads). PJ012 where the binding is missing or empty: a slip there must not cost every file. '
  'Definer: the worker role has no rights on tables.';
