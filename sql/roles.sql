-- Roles: who may do what, granted to people and applications with  grant procjobs_producer to my_app.
-- Owns:       the five roles, cluster-wide. Several databases of one cluster may do this at once.
-- Lock order: owner, producer, worker, reader, admin; then memberships.
-- Without CREATEROLE nothing fails: what is missing is said in a warning, which migrate reports.

do $$
declare
  v_role text;
  v_missing text[] := '{}';
begin
  foreach v_role in array array[
    'procjobs_owner', 'procjobs_producer', 'procjobs_worker', 'procjobs_reader', 'procjobs_admin'
  ]
  loop
    if to_regrole(v_role) is null then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then
          null;  -- another database's migrate was first
        when insufficient_privilege then
          v_missing := v_missing || v_role;
      end;
    end if;
  end loop;

  if v_missing <> '{}' then
    raise warning 'the roles % do not exist and % may not create them', array_to_string(v_missing, ', '), current_user
      using hint = format('as a superuser: %s; then procjobs migrate',
                          (select string_agg(format('create role %I nologin', r), '; ') from unnest(v_missing) as r));
  end if;
end
$$;

do $$
declare
  v_group text;
  v_member text;
begin
  for v_group, v_member in
    values ('procjobs_reader', 'procjobs_admin'), ('procjobs_producer', 'procjobs_admin'), ('procjobs_owner', current_user)
  loop
    -- Whoever migrates must be able to give objects to the owner; a superuser is, without being a member.
    continue when to_regrole(v_group) is null
      or to_regrole(quote_ident(v_member)) is null
      or pg_has_role(v_member, v_group, 'usage');
    begin
      execute format('grant %I to %I', v_group, v_member);
    exception
      when unique_violation or internal_error then
        null;  -- another database's migrate was first ("tuple concurrently updated")
      when insufficient_privilege or invalid_grant_operation then
        raise warning '% may not make % a member of %', current_user, v_member, v_group
          using hint = format('as a superuser: grant %I to %I; then procjobs migrate', v_group, v_member);
    end;
  end loop;
end
$$;

do $$
declare
  v_role text;
  v_comment text;
begin
  for v_role, v_comment in
    values
      ('procjobs_owner', 'Owns every object of procjobs; nobody logs in as it.'),
      ('procjobs_producer', 'May enqueue jobs, nothing else.'),
      ('procjobs_worker', 'May run jobs: claim, finish, heartbeat.'),
      ('procjobs_reader', 'May look at jobs, queues and workers, without arguments and error texts.'),
      ('procjobs_admin', 'May enqueue, look at everything, cancel, retry, pause and resume.')
  loop
    continue when to_regrole(v_role) is null
      or shobj_description(to_regrole(v_role), 'pg_authid') is not distinct from v_comment;
    begin
      execute format('comment on role %I is %L', v_role, v_comment);
    exception
      when insufficient_privilege or unique_violation or internal_error then
        null;
    end;
  end loop;
end
$$;
