-- Retention of the application's own tables, step by step: each step is short, and each is safe to be the last.
-- Owns:        rows of procjobs.table_retention_log while a run is under way; deletes and updates in the application's tables.
-- Lock order:  table_retention_log (one row, only while nothing else is locked); rows of the application, skipping locked ones.
-- A step either looks for the next rows, without a lock, or does one slice of what was found: it locks what of that is
-- still due, and lets it go.
-- What comes from a policy is run as the policy's role, and with the search path that the session has by default, as the
-- application's own statements are, so that its triggers find what they name. SET ROLE is no wall against code that
-- undoes it: a login works only policies of those who could act as this login anyway. Triggers of these tables are trusted,
-- as they are by any statement on them.

create or replace function procjobs.cleaning_statements(p_policy procjobs.table_policies)
returns table (leaf regclass, find text, work text, refuse text, is_itself boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select
    s.leaf,
    -- $1 cutoff, $2 where the last chunk ended, $3 beyond that moment, $4 how many.
    format(
      E'select array_agg(f.tid), %1$s(f.at)::text from (\n'
      '  select t.ctid as tid, t.%2$I as at from only %3$s t\n'
      '  where %4$s\n'
      '  and t.%2$I %5$s coalesce($2, %6$L)::%7$s and (not $3 or t.%2$I <> $2::%7$s)%8$s\n'
      '  order by t.%2$I %9$s limit $4\n) f',
      case when (p_policy).oldest_first then 'max' else 'min' end,
      (p_policy).column_name, s.leaf, s.due,
      case when (p_policy).oldest_first then '>=' else '<=' end,
      case when (p_policy).oldest_first then '-infinity' else 'infinity' end,
      procjobs.time_column(s.leaf, (p_policy).column_name),
      case when s.refused <> '' then format(' and not (%s)', s.refused) end,
      case when not (p_policy).oldest_first then 'desc' end),
    -- $1 cutoff, $2 the rows.
    format(
      E'with held as materialized (\n  select t.ctid from only %s t\n  where t.ctid = any ($2)\n  and %s%s\n  for update skip locked\n)\n'
      '%s\nwhere t.ctid = any (array(select h.ctid from held h))',
      s.leaf, s.due,
      case when s.refused <> '' then format(E'\n  and not (%s)', s.refused) end,
      case (p_policy).action
        when 'delete' then format('delete from only %s t', s.leaf)
        else format('update only %s t set %s', s.leaf, (
          select string_agg(format('%I = %s', v.column_name, v.value), ', ')
          from procjobs.assigned_values(s.leaf, (p_policy).assignments) v
        ))
      end),
    -- $1 cutoff: the rows that nothing keeps, and by constraint those that are referred to.
    format('select null::text, null::text, count(*) from only %s t where %s%s', s.leaf, s.due,
      case when s.refused <> '' then format(' and not (%s)', s.refused) end)
      || coalesce((
        select string_agg(format(E'\nunion all select %L, %L, count(*) from only %s t where %s and %s',
          r.constraint_name, r.referencing, s.leaf, s.due, r.condition), '' order by r.referencing, r.constraint_name)
        from procjobs.references_to(s.leaf) r
        where (p_policy).action = 'delete'
      ), ''),
    s.itself
  from (
    select
      l.leaf,
      procjobs.due_rows(p_policy, l.leaf) as due,
      coalesce((
        select string_agg(r.condition, ' or ') from procjobs.references_to(l.leaf) r where (p_policy).action = 'delete'
      ), '') as refused,
      exists (select from procjobs.references_to(l.leaf) r where r.is_itself and (p_policy).action = 'delete') as itself
    from procjobs.table_leaves(procjobs.find_table((p_policy).table_name)) l
  ) s
$$;
comment on function procjobs.cleaning_statements(procjobs.table_policies) is
  'What a policy does, as statements, for each table in which its rows lie: find due rows, work some of them, count them. '
  'Rows that others refer to are left out; a row that was changed meanwhile is judged anew.';

create or replace function procjobs.table_policy(p_name text)
returns procjobs.table_policies
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  p procjobs.table_policies;
  v_what text;
  v_mend text;
begin
  select * into p from procjobs.table_policies t where t.name = p_name;
  if not found then
    raise exception 'there is no policy %', quote_nullable(p_name)
      using errcode = 'PJ031',
            detail = coalesce('there are ' || (select string_agg(t.name, ', ' order by t.name) from procjobs.table_policies t), 'there is none at all'),
            hint = format('Say which rows: select procjobs.set_table_policy(%L, ''app.your_table'', ''the_column'', ''90 days'').', p_name);
  end if;
  select f.what, f.mend into v_what, v_mend from procjobs.policy_fault(p) f;
  if v_what is not null then
    perform procjobs.raise_policy(p_name, v_what, v_mend);
  end if;
  perform procjobs.check_may_become(p_name, p.run_as);
  -- SET ROLE can be undone by what a condition calls: whoever set it must be trusted with all that this login may do.
  if not coalesce(pg_has_role(to_regrole(quote_ident(p.set_by)), to_regrole(quote_ident(session_user)), 'member'), false) then
    perform procjobs.raise_policy(p_name, format('it was set by %I, who may not act as %I', p.set_by, session_user),
      case when (select r.rolsuper from pg_roles r where r.rolname = session_user)
        then 'Work it as a login with fewer rights, a worker''s, or set the policy again as a superuser.'
        else format('grant %I to %I, or set the policy again as somebody who may.', session_user, p.set_by) end);
  end if;
  return p;
end
$$;
comment on function procjobs.table_policy(text) is
  'A policy that fits its table as that is now, whose role the login may become, and which was set by somebody who may act as this login; else PJ031 or PJ030. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.begin_cleaning(p_policy text, p_expected bigint default null)
returns procjobs.cleaning
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  p procjobs.table_policies := procjobs.table_policy(p_policy);
  v_run procjobs.cleaning;
begin
  v_run.run_as := p.run_as;
  v_run.path := (select s.reset_val from pg_settings s where s.name = 'search_path');
  v_run.cutoff := procjobs.clock() - p.keep;
  v_run.batch := p.batch;
  v_run.size := least(100, p.batch);
  v_run.at := 1;
  v_run.rows := 0;
  v_run.batches := 0;
  v_run.slowest := interval '0';
  v_run.passed_over := 0;
  v_run.pass_rows := 0;
  v_run.found_rows := 0;
  v_run.next := 1;
  v_run.beyond := false;
  v_run.is_last := false;
  select array_agg(s.find), array_agg(s.work), bool_or(s.is_itself), count(*) = 0 or not p.enabled
  into v_run.finds, v_run.works, v_run.references_itself, v_run.finished
  from procjobs.cleaning_statements(p) s;
  if not p.enabled then
    raise notice 'policy % is switched off', p_policy;
    return v_run;
  end if;

  -- A run whose connection is gone will say no more.
  update procjobs.table_retention_log l
  set ended_at = l.noted_at,
      error = 'it was stopped, or its connection was lost; the next run went on'
  where l.policy = p_policy
    and l.ended_at is null
    and (l.pid = pg_backend_pid() or not exists (select from pg_stat_activity a where a.pid = l.pid));
  insert into procjobs.table_retention_log (policy, began_at, noted_at, cutoff, expected)
  values (p_policy, procjobs.wall_clock(), procjobs.wall_clock(), v_run.cutoff, p_expected)
  returning id into v_run.run_id;
  return v_run;
end
$$;
comment on function procjobs.begin_cleaning(text, bigint) is
  'Begins a run of a policy, and writes it into the log. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.begin_as(p_run procjobs.cleaning)
returns procjobs.cleaning
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_run.run_as <> current_user then
    p_run.caller := current_setting('role');
    begin
      perform set_config('role', p_run.run_as, true);
      perform set_config('role', p_run.caller, true);
    exception
      when others then
        perform procjobs.raise_policy('of role ' || p_run.run_as, sqlerrm,
          'Call it directly, not from a function with its owner''s rights, as a login that may act as this role.');
    end;
  end if;
  return p_run;
end
$$;
comment on function procjobs.begin_as(procjobs.cleaning) is
  'Sees to it that a run can act as its policy''s role: not within a function with its owner''s rights, say.';

create or replace function procjobs.find_due_rows(p_run procjobs.cleaning)
returns procjobs.cleaning
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  -- By the index where there is one, whatever the statistics say of a table that was just filled: a sort of all rows for
  -- each chunk would take the square of the time.
  v_run procjobs.cleaning := p_run;
  v_chunk constant integer := 10 * v_run.batch;
  v_last text;
begin
  if not v_run.is_last then
    perform set_config('search_path', v_run.path, true),
      case when v_run.caller is not null then set_config('role', v_run.run_as, true) end;
    execute v_run.finds[v_run.at] into v_run.tids, v_last using v_run.cutoff, v_run.reached, v_run.beyond, v_chunk;
    perform case when v_run.caller is not null then set_config('role', v_run.caller, true) end,
      set_config('search_path', 'pg_catalog, pg_temp', true);
    v_run.next := 1;
    -- A whole chunk of one moment, of which nothing could be done: step over that moment.
    v_run.beyond := coalesce(v_run.found_rows = 0 and v_last = v_run.reached, false);
    v_run.is_last := coalesce(cardinality(v_run.tids), 0) < v_chunk and not v_run.beyond;
    v_run.reached := v_last;
    v_run.found_rows := 0;
    if v_run.tids is not null then
      return v_run;
    end if;
  end if;

  -- This table is done. One that refers to itself again, as long as that frees rows: children were in the way.
  if not (v_run.references_itself and v_run.pass_rows > 0) then
    v_run.at := v_run.at + 1;
  end if;
  v_run.tids := null;
  v_run.reached := null;
  v_run.beyond := false;
  v_run.is_last := false;
  v_run.pass_rows := 0;
  v_run.finished := v_run.at > cardinality(v_run.finds);
  return v_run;
end
$$;
comment on function procjobs.find_due_rows(procjobs.cleaning) is
  'A step of a run: the next due rows, at most ten batches of them, in the order of their time; without a lock on any.';

create or replace function procjobs.work_due_rows(p_run procjobs.cleaning, p_max_rows bigint)
returns procjobs.cleaning
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
  v_run procjobs.cleaning := p_run;
  v_most integer := least(v_run.size, cardinality(v_run.tids) - v_run.next + 1, p_max_rows - v_run.rows);
  v_count bigint;
begin
  perform set_config('search_path', v_run.path, true),
    case when v_run.caller is not null then set_config('role', v_run.run_as, true) end;
  execute v_run.works[v_run.at] using v_run.cutoff, v_run.tids[v_run.next:v_run.next + v_most - 1];
  get diagnostics v_count = row_count;
  perform case when v_run.caller is not null then set_config('role', v_run.caller, true) end,
    set_config('search_path', 'pg_catalog, pg_temp', true);
  v_run.next := v_run.next + v_most;
  v_run.rows := v_run.rows + v_count;
  v_run.pass_rows := v_run.pass_rows + v_count;
  v_run.found_rows := v_run.found_rows + v_count;
  v_run.passed_over := v_run.passed_over + v_most - v_count;
  v_run.batches := v_run.batches + 1;
  return v_run;
exception
  when lock_not_available or deadlock_detected or serialization_failure or foreign_key_violation then
    -- A row that came to be referred to meanwhile, or whose cascade meets a locked one: found by halving, and passed over.
    v_run := p_run;
    if v_most > 1 then
      v_run.size := v_most / 2;
    else
      v_run.next := v_run.next + 1;
      v_run.passed_over := v_run.passed_over + 1;
    end if;
    return v_run;
  when others then
    v_run := p_run;
    get stacked diagnostics v_run.sqlstate = returned_sqlstate, v_run.error = message_text;
    v_run.finished := true;
    return v_run;
end
$$;
comment on function procjobs.work_due_rows(procjobs.cleaning, bigint) is
  'A step of a run: one slice of the rows that were found, locked, judged again, and deleted or set. What others hold is passed over until the next run.';

create or replace function procjobs.clean_step(p_run procjobs.cleaning, p_max_rows bigint)
returns procjobs.cleaning
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_run.finished or p_run.rows >= p_max_rows then
    p_run.finished := true;
    return p_run;
  elsif p_run.next > coalesce(cardinality(p_run.tids), 0) then
    return procjobs.find_due_rows(p_run);
  end if;
  return procjobs.work_due_rows(p_run, p_max_rows);
end
$$;
comment on function procjobs.clean_step(procjobs.cleaning, bigint) is 'One step of a run of a policy, which ends when it has done p_max_rows rows.';

create or replace function procjobs.clean_pace(p_run procjobs.cleaning, p_batches_before integer, p_took double precision)
returns procjobs.cleaning
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Locks are held as long as a batch takes, with its commit: a quarter of the 100 ms that they may be held, since a
  -- busy machine may take its time.
  if p_run.batches > p_batches_before then
    p_run.size := greatest(1, least(p_run.batch, 2 * p_run.size,
      p_run.size * 0.025 / greatest(p_took, 0.001)));
    p_run.slowest := greatest(p_run.slowest, make_interval(secs => p_took));
  end if;
  return p_run;
end
$$;
comment on function procjobs.clean_pace(procjobs.cleaning, integer, double precision) is
  'How many rows the next batch takes, by how many seconds the last one did: towards 25 ms, at most twice as many.';

create or replace function procjobs.note_cleaning(p_run procjobs.cleaning)
returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  update procjobs.table_retention_log l
  set noted_at = procjobs.wall_clock(),
      rows = (p_run).rows,
      batches = (p_run).batches,
      slowest = (p_run).slowest,
      passed_over = (p_run).passed_over
  where l.id = (p_run).run_id
$$;
comment on function procjobs.note_cleaning(procjobs.cleaning) is
  'Writes how far a run has come into the log. Definer: the worker and admin roles have no rights on tables.';
