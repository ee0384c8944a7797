-- Policies for the application's own tables: which rows are due, and what is done with them.
-- Owns:        procjobs.table_policies.
-- Lock order:  table_policies, one row; then schedules by name.
-- set_table_policy runs with its caller's rights, and parses as the role that the policy runs as. What it found good is
-- stored by store_table_policy, with the owner's rights, for no role that the login could not become itself.

create or replace function procjobs.find_table(p_name text)
returns regclass
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[];
begin
  v_parts := parse_ident(p_name);
  return (
    select c.oid
    from pg_namespace n
    join pg_class c on c.relnamespace = n.oid
    where cardinality(v_parts) = 2
      and n.nspname = v_parts[1]
      and c.relname = v_parts[2]
  );
exception
  when invalid_parameter_value then
    return null;  -- no name at all
end
$$;
comment on function procjobs.find_table(text) is
  'The table of a name with its schema; null if there is none. Unlike to_regclass it does not fail for who may not use that schema.';

create or replace function procjobs.table_leaves(p_table regclass)
returns table (leaf regclass)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive tree as (
    select p_table::oid as oid
    union
    select i.inhrelid
    from tree t
    join pg_inherits i on i.inhparent = t.oid
  )
  select c.oid::regclass
  from tree t
  join pg_class c on c.oid = t.oid
  where c.relkind = 'r'
  order by c.oid::regclass::text
$$;
comment on function procjobs.table_leaves(regclass) is 'The tables in which a table''s rows really lie: itself, its partitions, its heirs.';

create or replace function procjobs.time_column(p_table regclass, p_column text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when coalesce(nullif(y.typbasetype, 0), y.oid) in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
      then coalesce(nullif(y.typbasetype, 0), y.oid)::regtype::text
  end
  from pg_attribute a
  join pg_type y on y.oid = a.atttypid
  where a.attrelid = p_table
    and a.attname = p_column
    and a.attnum > 0
    and not a.attisdropped
$$;
comment on function procjobs.time_column(regclass, text) is 'The type of a column of time; null where it is none, or is not there.';

create or replace function procjobs.assigned_values(p_table regclass, p_assignments jsonb)
returns table (column_name text, value text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    e.key,
    case
      when jsonb_typeof(e.value) = 'null' then 'null'
      when a.atttypid in ('json'::regtype, 'jsonb'::regtype) then quote_literal(e.value::text)
      else quote_literal(e.value #>> '{}')
    end || '::' || format_type(a.atttypid, a.atttypmod)
  from jsonb_each(p_assignments) e
  left join pg_attribute a
    on a.attrelid = p_table
   and a.attname = e.key
   and a.attnum > 0
   and not a.attisdropped
   and a.attgenerated = ''
  order by e.key
$$;
comment on function procjobs.assigned_values(regclass, jsonb) is
  'The columns that a policy sets, with their values in SQL; the value is null where there is no such column.';

create or replace function procjobs.due_rows(p_policy procjobs.table_policies, p_leaf regclass)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(E'\n  and ',
    format('t.%I < %s', (p_policy).column_name, case procjobs.time_column(p_leaf, (p_policy).column_name)
      when 'date' then '($1::timestamptz at time zone ''UTC'')::date'
      when 'timestamp without time zone' then '($1::timestamptz at time zone ''UTC'')'
      else '$1::timestamptz' end),
    -- A comment at its end must not swallow what follows.
    '(' || (p_policy).condition || E'\n)',
    '(' || (
      select string_agg(format('t.%I is distinct from %s', v.column_name, v.value), ' or ')
      from procjobs.assigned_values(p_leaf, (p_policy).assignments) v
    ) || ')')
$$;
comment on function procjobs.due_rows(procjobs.table_policies, regclass) is
  'The rows t of a table that a policy is about, as a condition; $1 is the moment before which they are due. Dates and times without a zone are taken as UTC.';

create or replace function procjobs.references_to(p_leaf regclass)
returns table (constraint_name text, referencing text, is_itself boolean, condition text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    c.conname::text,
    c.conrelid::regclass::text,
    c.conrelid = p_leaf,
    format('exists (select from %s r where %s)', c.conrelid::regclass, (
      select string_agg(format('r.%I = t.%I', here.attname, there.attname), ' and ' order by k.n)
      from unnest(c.conkey, c.confkey) with ordinality as k (here, there, n)
      join pg_attribute here on here.attrelid = c.conrelid and here.attnum = k.here
      join pg_attribute there on there.attrelid = c.confrelid and there.attnum = k.there
    ))
  from pg_constraint c
  where c.contype = 'f'
    and c.confrelid = p_leaf
    and c.confdeltype in ('a', 'r')
    -- Of a partitioned table that refers, not each partition again.
    and not exists (
      select
      from pg_constraint whole
      where whole.oid = c.conparentid
        and whole.confrelid = c.confrelid
    )
  order by 2, 1
$$;
comment on function procjobs.references_to(regclass) is
  'The foreign keys that keep a row t of a table from being deleted while others refer to it, each as a condition.';

create or replace function procjobs.raise_policy(p_name text, p_what text, p_mend text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'policy % does not fit', quote_nullable(p_name)
    using errcode = 'PJ030', detail = p_what, hint = p_mend;
end
$$;
comment on function procjobs.raise_policy(text, text, text) is 'Raises PJ030: what is wrong with a table''s policy, and the mend.';

create or replace function procjobs.policy_fault(p_policy procjobs.table_policies, out what text, out mend text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  p record := p_policy;
  v_table regclass := procjobs.find_table(p.table_name);
  v_unknown text := (
    select string_agg(v.column_name, ', ')
    from procjobs.assigned_values(v_table, case when jsonb_typeof(p.assignments) = 'object' then p.assignments end) v
    where v.value is null
  );
begin
  select f.what, f.mend into what, mend
  from (values
    (coalesce(p.name, '') !~ '^[A-Za-z0-9_.:/-]{1,63}$', 'its name is not one',
      'Names have 1 to 63 letters, digits or one of _ . : / -.'),
    (v_table is null, format('there is no table %s', quote_nullable(p.table_name)),
      'Write it with its schema: app.sessions.'),
    (not exists (select from pg_class c where c.oid = v_table and c.relkind in ('r', 'p')), format('%s is not a table', p.table_name),
      'A policy is for a table, partitioned or not: name the one behind the view.'),
    (exists (select from pg_class c where c.oid = v_table
        and (c.relnamespace in ('procjobs'::regnamespace, 'pg_catalog'::regnamespace) or c.oid = procjobs.find_table('public.procrastinate_jobs'))),
      format('%s is not the application''s', p.table_name), 'How long jobs are kept is set with procjobs.set_retention.'),
    (procjobs.time_column(v_table, p.column_name) is null, format('%s has no column of time %s', p.table_name, quote_nullable(p.column_name)),
      'Name a column that is timestamptz, timestamp or date.'),
    (p.keep is null or p.keep < interval '0', format('keep is %s', coalesce(p.keep::text, 'null')),
      'Write how long a row is kept after that time, e.g. ''90 days''; 0 for a time of expiry.'),
    (coalesce(p.action, '') not in ('delete', 'set'), format('the action is %s', quote_nullable(p.action)), 'It is delete or set.'),
    ((p.action = 'set') <> (coalesce(jsonb_typeof(p.assignments), 'null') = 'object' and p.assignments <> '{}'),
      case p.action when 'set' then 'it sets nothing' else 'it deletes, and sets something' end,
      'For set, write the values by column: action => ''set'', assignments => ''{"status": "expired"}''.'),
    (v_unknown is not null, format('%s has no column %s to be set', p.table_name, v_unknown),
      'Assignments are {"column": value}; generated columns cannot be set.'),
    (coalesce(p.batch, 0) not between 1 and 10000, format('batch is %s', coalesce(p.batch::text, 'null')), 'It lies between 1 and 10000.')
  ) as f (is_so, what, mend)
  where f.is_so
  limit 1;
end
$$;
comment on function procjobs.policy_fault(procjobs.table_policies) is
  'The first thing that is wrong with a policy by itself and by the catalogs; null where nothing is.';

create or replace function procjobs.policy_rights(p_policy procjobs.table_policies)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(needed, '; ' order by needed)
  from (
    -- Rows are locked before they go, which takes UPDATE.
    select format('grant select, update%s on %s to %I', case when (p_policy).action = 'delete' then ', delete' end,
      (p_policy).table_name, (p_policy).run_as)
    from procjobs.table_leaves(procjobs.find_table((p_policy).table_name)) l
    where not (has_table_privilege((p_policy).run_as, l.leaf, 'select')
      and has_any_column_privilege((p_policy).run_as, l.leaf, 'update')
      and ((p_policy).action <> 'delete' or has_table_privilege((p_policy).run_as, l.leaf, 'delete')))
    union
    select format('grant usage on schema %I to %I', n.nspname, (p_policy).run_as)
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = procjobs.find_table((p_policy).table_name)
      and not has_schema_privilege((p_policy).run_as, n.oid, 'usage')
    union
    select format('grant select on %s to %I', r.referencing, (p_policy).run_as)
    from procjobs.table_leaves(procjobs.find_table((p_policy).table_name)) l
    cross join procjobs.references_to(l.leaf) r
    where (p_policy).action = 'delete'
      and not has_table_privilege((p_policy).run_as, procjobs.find_table(r.referencing), 'select')
  ) as missing (needed)
$$;
comment on function procjobs.policy_rights(procjobs.table_policies) is
  'What must be granted to the role of a policy before it can be worked; null where nothing is missing. Rows that others refer to are looked for in their tables.';

create or replace function procjobs.policy_warnings(p_policy procjobs.table_policies)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select format('no index of %s begins with %s: each chunk reads the whole table; create index concurrently on %s (%I)',
      l.leaf, (p_policy).column_name, l.leaf, (p_policy).column_name)
    from procjobs.table_leaves(procjobs.find_table((p_policy).table_name)) l
    where not exists (
      select
      from pg_index i
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
      where i.indrelid = l.leaf
        and i.indisvalid
        and a.attname = (p_policy).column_name
    )
  ) || array(
    select format('no index of %s begins with what refers to %s (%s): each row that goes reads that table', r.referencing, l.leaf, r.constraint_name)
    from procjobs.table_leaves(procjobs.find_table((p_policy).table_name)) l
    join pg_constraint c on c.contype = 'f' and c.confrelid = l.leaf
    join procjobs.references_to(l.leaf) r on r.constraint_name = c.conname and procjobs.find_table(r.referencing) = c.conrelid
    where (p_policy).action = 'delete'
      and not exists (
        select from pg_index i where i.indrelid = c.conrelid and i.indisvalid and i.indkey[0] = any (c.conkey)
      )
  )
$$;
comment on function procjobs.policy_warnings(procjobs.table_policies) is 'What will make a policy slow, one sentence each.';

create or replace function procjobs.check_policy_parses(p_policy procjobs.table_policies)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_caller text := current_setting('role');
  v_path text := (select s.reset_val from pg_settings s where s.name = 'search_path');
  v_from text := 'select from ' || (p_policy).table_name || ' t where ';
  v_query text;
begin
  -- As it is and in parentheses: only an expression that is whole by itself is both.
  foreach v_query in array array[
    v_from || coalesce((p_policy).condition, 'true'),
    v_from || procjobs.due_rows(p_policy, procjobs.find_table((p_policy).table_name))
  ] loop
    begin
      perform set_config('search_path', v_path, true),
        case when (p_policy).run_as <> current_user then set_config('role', (p_policy).run_as, true) end;
      execute 'prepare pj_policy as ' || v_query;
      execute 'deallocate pj_policy';
    exception
      when others then
        perform procjobs.raise_policy((p_policy).name, sqlerrm,
          'The condition is one expression over the columns of the table, e.g. status <> ''paid''; values of assignments must fit their columns.');
    end;
    perform set_config('role', v_caller, true) where v_caller <> current_setting('role');
    perform set_config('search_path', 'pg_catalog, pg_temp', true);
  end loop;
end
$$;
comment on function procjobs.check_policy_parses(procjobs.table_policies) is
  'Raises PJ030 unless condition and values of a policy can be parsed. Names are looked up as the session does by default.';

drop function if exists procjobs.set_table_policy(text, text, text, interval, text, text, jsonb, integer, boolean, boolean, text, text);
create or replace function procjobs.set_table_policy(
  name text,
  table_name text,
  column_name text,
  keep interval,
  condition text default null,
  action text default 'delete',
  assignments jsonb default null,
  batch integer default 1000,
  oldest_first boolean default true,
  enabled boolean default true,
  run_as text default null,
  description text default null,
  reason text default null
)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  p procjobs.table_policies;
  v_what text;
  v_mend text;
begin
  perform set_config('search_path', (select s.reset_val from pg_settings s where s.name = 'search_path'), true);
  p.table_name := coalesce(
    (select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = coalesce(procjobs.find_table(set_table_policy.table_name), to_regclass(set_table_policy.table_name))),
    set_table_policy.table_name);
  perform set_config('search_path', 'pg_catalog, pg_temp', true);

  p.name := name;
  p.column_name := column_name;
  p.keep := keep;
  p.condition := nullif(btrim(condition), '');
  p.action := action;
  p.assignments := nullif(assignments, 'null');
  p.batch := batch;
  p.oldest_first := coalesce(oldest_first, true);
  p.enabled := coalesce(enabled, true);
  p.run_as := coalesce(run_as, current_user);
  p.description := description;
  select f.what, f.mend into v_what, v_mend from procjobs.policy_fault(p) f;
  if v_what is not null then
    perform procjobs.raise_policy(p.name, v_what, v_mend);
  end if;
  perform procjobs.check_may_become(p.name, p.run_as);
  v_mend := procjobs.policy_rights(p);
  if v_mend is not null then
    perform procjobs.raise_policy(p.name, format('role %I may not do this to %s', p.run_as, p.table_name), v_mend || '.');
  end if;

  perform procjobs.check_policy_parses(p);
  foreach v_what in array procjobs.policy_warnings(p) loop
    raise warning 'policy %: %', p.name, v_what;
  end loop;
  return procjobs.store_table_policy(p, reason);
end
$$;
comment on function procjobs.set_table_policy(text, text, text, interval, text, text, jsonb, integer, boolean, boolean, text, text, text) is
  'Keeps rows of a table for so long after the time in a column: select procjobs.set_table_policy(''cleanup_sessions'', ''app.sessions'', ''expires_at'', ''0''). '
  'Due rows for which condition holds are deleted, or get the values of assignments (action set), by batches of at most batch rows. '
  'It is worked with the rights of run_as, by default the caller''s, by procjobs.run_retention(name) or call procjobs.work_retention(name). The same name again changes it; the reason goes to procjobs.setting_log. '
  'Returns the policy in words.';

create or replace function procjobs.may_become(p_role text)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    pg_has_role(session_user, to_regrole(quote_ident(p_role)),
      case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end), false)
$$;
comment on function procjobs.may_become(text) is 'Whether the login may SET ROLE to a role; false if there is none of that name.';

create or replace function procjobs.check_may_become(p_name text, p_role text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regrole(quote_ident(p_role)) is null then
    perform procjobs.raise_policy(p_name, format('there is no role %s', quote_literal(p_role)), 'run_as names a role of this server.');
  elsif not procjobs.may_become(p_role) then
    perform procjobs.raise_policy(p_name, format('%I may not act as role %I', session_user, p_role),
      format('grant %I to %I, or let the policy run as another role.', p_role, session_user));
  end if;
end
$$;
comment on function procjobs.check_may_become(text, text) is 'Raises PJ030 unless the login may SET ROLE to the role of a policy.';

drop function if exists procjobs.store_table_policy(procjobs.table_policies);
create or replace function procjobs.store_table_policy(p_policy procjobs.table_policies, p_reason text default null)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  p record := p_policy;
  v_why text;
begin
  perform procjobs.check_may_become(p.name, p.run_as);
  v_why := procjobs.give_reason(p_reason);
  insert into procjobs.table_policies as known (
    name, table_name, column_name, keep, condition, action, assignments, batch, oldest_first, enabled, run_as, description, set_at
  )
  values (
    p.name, p.table_name, p.column_name, p.keep, p.condition, p.action, p.assignments, p.batch, p.oldest_first, p.enabled, p.run_as,
    p.description, procjobs.clock()
  )
  on conflict (name) do update
  set table_name = excluded.table_name,
      column_name = excluded.column_name,
      keep = excluded.keep,
      condition = excluded.condition,
      action = excluded.action,
      assignments = excluded.assignments,
      batch = excluded.batch,
      oldest_first = excluded.oldest_first,
      enabled = excluded.enabled,
      run_as = excluded.run_as,
      description = excluded.description,
      set_at = excluded.set_at,
      set_by = session_user
  where (known.table_name, known.column_name, known.keep, known.condition, known.action, known.assignments, known.batch,
      known.oldest_first, known.enabled, known.run_as, known.description, known.set_by)
    is distinct from (excluded.table_name, excluded.column_name, excluded.keep, excluded.condition, excluded.action, excluded.assignments,
      excluded.batch, excluded.oldest_first, excluded.enabled, excluded.run_as, excluded.description, session_user);
  perform procjobs.give_reason(v_why);
  -- While migrate applies a host.sql, the tasks may not be there yet: then migrate itself does this at its end.
  perform procjobs.declare_retention_schedules()
  where p.name in (select s.name from procjobs.retention_schedules() s)
    and exists (select from procjobs.tasks t where t.name = 'procjobs.work_retention');
  return procjobs.policy_in_words(p_policy);
end
$$;
comment on function procjobs.store_table_policy(procjobs.table_policies, text) is
  'Stores what set_table_policy found good, for a role that the login may become. Definer: the admin role has no rights on tables.';

create or replace function procjobs.policy_in_words(p_policy procjobs.table_policies)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('%s rows of %s %s after %s%s%s',
    case (p_policy).action when 'delete' then 'delete' else 'set ' || (
      select string_agg(format('%s = %s', e.key, e.value), ', ') from jsonb_each((p_policy).assignments) e
    ) || ' in' end,
    (p_policy).table_name,
    case when (p_policy).keep = interval '0' then 'once' else (p_policy).keep::text end,
    (p_policy).column_name,
    ' where ' || (p_policy).condition,
    case when not (p_policy).enabled then ' (switched off)' end)
$$;
comment on function procjobs.policy_in_words(procjobs.table_policies) is 'A table''s policy in words.';

drop function if exists procjobs.drop_table_policy(text);
create or replace function procjobs.drop_table_policy(name text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(drop_table_policy.reason);
  v_found boolean;
begin
  delete from procjobs.table_policies p where p.name = drop_table_policy.name;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if not v_found then
    return false;
  end if;
  perform procjobs.declare_retention_schedules();
  return true;
end
$$;
comment on function procjobs.drop_table_policy(text, text) is
  'Forgets a table''s policy, and the schedule that came with it; what it did stays in table_retention_runs; the reason goes to procjobs.setting_log. False if there is none of that name. Definer: the admin role has no rights on tables.';
