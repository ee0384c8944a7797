-- Owners: everything in the schema procjobs belongs to procjobs_owner. Applied before the host's own file and schedules.sql,
-- which call our functions, and last.
-- Lock order: tables, sequences, views, then functions and types, by name; only what belongs to somebody else is touched.

do $$
declare
  v_change text;
begin
  if to_regrole('procjobs_owner') is null then
    return;  -- said by roles.sql
  end if;

  for v_change in
    select change
    from (
      select 1 as step, 'schema procjobs' as object, nspowner as owner
      from pg_namespace
      where nspname = 'procjobs'
      union all
      select
        case c.relkind when 'S' then 3 when 'v' then 4 when 'm' then 4 else 2 end,
        format(
          '%s %s',
          case c.relkind when 'S' then 'sequence' when 'v' then 'view' when 'm' then 'materialized view' else 'table' end,
          c.oid::regclass
        ),
        c.relowner
      from pg_class c
      where c.relnamespace = 'procjobs'::regnamespace
        and c.relkind in ('r', 'p', 'S', 'v', 'm')
        and not exists (
          select
          from pg_depend d
          where d.objid = c.oid
            and d.classid = 'pg_class'::regclass
            and d.deptype in ('a', 'i')
            and c.relkind = 'S'
        )
      union all
      select 5, format('%s %s', case p.prokind when 'p' then 'procedure' else 'function' end, p.oid::regprocedure), p.proowner
      from pg_proc p
      where p.pronamespace = 'procjobs'::regnamespace
        and p.prokind in ('f', 'p')
      union all
      select 6, format('%s %s', case t.typtype when 'd' then 'domain' else 'type' end, t.oid::regtype), t.typowner
      from pg_type t
      where t.typnamespace = 'procjobs'::regnamespace
        and (t.typtype in ('d', 'e') or t.typtype = 'c' and exists (
          select from pg_class c where c.oid = t.typrelid and c.relkind = 'c'
        ))
    ) as objects
    cross join lateral (select format('alter %s owner to procjobs_owner', object) as change) as changes
    where owner <> to_regrole('procjobs_owner')
    order by step, object
  loop
    execute v_change;
  end loop;
exception
  when insufficient_privilege then
    raise warning 'the objects of procjobs stay with %: %', current_user, sqlerrm
      using hint = format('as a superuser: grant procjobs_owner to %I; then procjobs migrate', current_user);
end
$$;
