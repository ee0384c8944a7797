-- Before going back a revision: functions, views and triggers go (migrate brings them back), and Procrastinate's own
-- functions and tables are as it made them: no settings of ours, no grants of ours, EXECUTE for PUBLIC.

do $$
declare
  v_object text;
begin
  for v_object in
    select format('view if exists %s', oid::regclass)  -- one may have gone with another that it reads
    from pg_class
    where relnamespace = 'procjobs'::regnamespace
      and relkind = 'v'
  loop
    execute format('drop %s cascade', v_object);
  end loop;

  for v_object in
    select format('%s if exists %s', case prokind when 'p' then 'procedure' else 'function' end, oid::regprocedure)
    from pg_proc
    where pronamespace = 'procjobs'::regnamespace
  loop
    execute format('drop %s cascade', v_object);
  end loop;
end
$$;

do $$
declare
  v_schema oid := (select relnamespace from pg_class where oid = 'public.procrastinate_jobs'::regclass);
  v_role text;
  v_object text;
begin
  for v_object in
    select oid::regprocedure
    from pg_proc
    where pronamespace = v_schema
      and proname like 'procrastinate\_%'
  loop
    execute format('alter function %s reset all', v_object);
    execute format('grant execute on function %s to public', v_object);
  end loop;

  for v_object in
    select format('type %s', oid::regtype)
    from pg_type
    where typnamespace = v_schema
      and typname like 'procrastinate\_%'
      and typtype in ('e', 'c')
      and (typtype = 'e' or exists (select from pg_class c where c.oid = typrelid and c.relkind = 'c'))
  loop
    execute format('grant usage on %s to public', v_object);
  end loop;

  for v_role in select rolname from pg_roles where rolname like 'procjobs\_%' and not rolsuper
  loop
    for v_object in
      select format('%s %s', case relkind when 'S' then 'sequence' else 'table' end, oid::regclass)
      from pg_class
      where relnamespace = v_schema
        and relname like 'procrastinate\_%'
        and relkind in ('r', 'p', 'S')
      union all
      select format('function %s', oid::regprocedure)
      from pg_proc
      where pronamespace = v_schema
        and proname like 'procrastinate\_%'
      union all
      select format('type %s', oid::regtype)
      from pg_type
      where typnamespace = v_schema
        and typname like 'procrastinate\_%'
        and typtype = 'e'
      union all
      select format('schema %s', v_schema::regnamespace)
    loop
      execute format('revoke all on %s from %I', v_object, v_role);
    end loop;
  end loop;
end
$$;
