-- Retention of the application's own tables: counting what is due, and working it, at once or with a commit after each batch.
-- Owns:        the end of a run in procjobs.table_retention_log.
-- Lock order:  as retention_steps.sql says; then table_retention_log (one row), and a job that vacuums.
-- run_retention takes all steps in its caller's transaction; work_retention commits after each.

create or replace function procjobs.count_due_rows(p_policy procjobs.table_policies)
returns table (constraint_name text, referencing text, rows bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run procjobs.cleaning;
  v_count text;
  v_cutoff timestamptz := procjobs.clock() - p_policy.keep;
  v_counts text[] := array(select s.refuse from procjobs.cleaning_statements(p_policy) s);
begin
  v_run.run_as := p_policy.run_as;
  v_run := procjobs.begin_as(v_run);
  foreach v_count in array v_counts loop
    perform set_config('search_path', (select s.reset_val from pg_settings s where s.name = 'search_path'), true),
      case when v_run.caller is not null then set_config('role', v_run.run_as, true) end;
    return query execute v_count using v_cutoff;
    perform case when v_run.caller is not null then set_config('role', v_run.caller, true) end,
      set_config('search_path', 'pg_catalog, pg_temp', true);
  end loop;
end
$$;
comment on function procjobs.count_due_rows(procjobs.table_policies) is
  'How many rows are due by a policy: those that nothing keeps (no constraint), and those that others refer to, by the constraint that says so.';

create or replace function procjobs.say_referenced(p_policy text, p_constraint text, p_referencing text, p_rows bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise notice 'policy %: % rows stay, since % refers to them (%)', p_policy, p_rows, p_referencing, p_constraint
    using hint = format('Let a policy for %s go first, or change the constraint: foreign key ... on delete cascade, or set null.', p_referencing);
end
$$;
comment on function procjobs.say_referenced(text, text, text, bigint) is 'Says which constraint keeps rows from being deleted, and the mend.';

create or replace function procjobs.count_retention(policy text)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found record;
  v_rows bigint := 0;
begin
  for v_found in
    select c.constraint_name, c.referencing, sum(c.rows)::bigint as rows
    from procjobs.count_due_rows(procjobs.table_policy(policy)) c
    group by 1, 2
  loop
    if v_found.constraint_name is null then
      v_rows := v_found.rows;
    elsif v_found.rows > 0 then
      perform procjobs.say_referenced(policy, v_found.constraint_name, v_found.referencing, v_found.rows);
    end if;
  end loop;
  return v_rows;
end
$$;
comment on function procjobs.count_retention(text) is
  'How many rows a table''s policy would delete or set now; nothing is done. Rows that others refer to are not counted, a notice says how many there are.';

create or replace function procjobs.expect_rows(p_policy text)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select sum(c.rows)::bigint
    from procjobs.count_due_rows(procjobs.table_policy(p_policy)) c
    where c.constraint_name is null
  );
end
$$;
comment on function procjobs.expect_rows(text) is 'How many rows a run of a policy will do, for its progress.';

create or replace function procjobs.end_cleaning(p_run procjobs.cleaning, p_policy text, p_referenced jsonb)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_wanted boolean;
begin
  v_wanted := p_run.rows >= 10000 and p_run.rows >= 0.1 * (
    select coalesce(sum(c.reltuples), 0)
    from procjobs.table_policies p
    cross join procjobs.table_leaves(procjobs.find_table(p.table_name)) l
    join pg_class c on c.oid = l.leaf
    where p.name = p_policy
  );
  update procjobs.table_retention_log l
  set noted_at = procjobs.wall_clock(),
      ended_at = procjobs.wall_clock(),
      rows = p_run.rows,
      batches = p_run.batches,
      slowest = p_run.slowest,
      passed_over = p_run.passed_over,
      referenced = p_referenced,
      error = p_run.error,
      vacuum_wanted = v_wanted
  where l.id = p_run.run_id;
  if procjobs.chore_is_due('forget_table_retention', interval '1 day') then
    delete from procjobs.table_retention_log l where l.began_at < procjobs.clock() - interval '1 year';
  end if;
  -- VACUUM is a statement of its own: a worker's, where one knows how, else pg_cron's.
  if v_wanted and exists (select from procjobs.tasks t where t.name = 'procjobs.vacuum_table') then
    begin
      perform procjobs.defer('procjobs.vacuum_table', jsonb_build_object('policy', p_policy), queueing_lock => 'procjobs.vacuum_table ' || p_policy);
    exception
      when sqlstate 'PJ006' then
        null;  -- such a job waits already
    end;
  end if;
end
$$;
comment on function procjobs.end_cleaning(procjobs.cleaning, text, jsonb) is
  'Ends a run in the log, and asks for a vacuum where much went. Definer: the worker and admin roles have no rights on tables.';

create or replace function procjobs.finish_cleaning(p_run procjobs.cleaning, p_policy text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  p procjobs.table_policies := procjobs.table_policy(p_policy);
  v_found record;
  v_referenced jsonb;
begin
  if p_run.run_id is null then
    return;
  end if;
  if p_run.error is null and exists (
    select from procjobs.table_leaves(procjobs.find_table(p.table_name)) l cross join procjobs.references_to(l.leaf) r where p.action = 'delete'
  ) then
    for v_found in
      select c.constraint_name, c.referencing, sum(c.rows)::bigint as rows
      from procjobs.count_due_rows(p) c
      where c.constraint_name is not null
      group by 1, 2
      having sum(c.rows) > 0
    loop
      v_referenced := coalesce(v_referenced, '{}') || jsonb_build_object(
        v_found.constraint_name, jsonb_build_object('table', v_found.referencing, 'rows', v_found.rows));
      perform procjobs.say_referenced(p_policy, v_found.constraint_name, v_found.referencing, v_found.rows);
    end loop;
  end if;
  perform procjobs.end_cleaning(p_run, p_policy, v_referenced);
end
$$;
comment on function procjobs.finish_cleaning(procjobs.cleaning, text) is
  'Ends a run: counts the rows that stay because others refer to them, says so, and writes it into the log.';

create or replace function procjobs.raise_cleaning(p_run procjobs.cleaning, p_policy text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'policy % met an error: %', p_policy, p_run.error
    using errcode = p_run.sqlstate,
          detail = format('in the batch after %s rows', p_run.rows),
          hint = 'A trigger or constraint of the table refuses: mend it, or narrow the policy''s condition. The next run goes on.';
end
$$;
comment on function procjobs.raise_cleaning(procjobs.cleaning, text) is 'Raises what a batch of a run met, with its own SQLSTATE.';

create or replace function procjobs.clean_table(p_policy text, p_max_rows bigint)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run procjobs.cleaning := procjobs.begin_as(procjobs.begin_cleaning(p_policy));
  v_before integer;
  v_at double precision;
begin
  while not v_run.finished loop
    v_before := v_run.batches;
    v_at := procjobs.stopwatch();
    v_run := procjobs.clean_step(v_run, p_max_rows);
    v_run := procjobs.clean_pace(v_run, v_before, procjobs.stopwatch() - v_at);
  end loop;
  if v_run.error is not null then
    perform procjobs.raise_cleaning(v_run, p_policy);
  end if;
  perform procjobs.finish_cleaning(v_run, p_policy);
  if v_run.rows >= p_max_rows then
    raise notice 'policy %: there may be more than these % rows', p_policy, v_run.rows
      using hint = format('Call it again, or for all of them, with a commit after each batch: call procjobs.work_retention(%L).', p_policy);
  end if;
  return v_run.rows;
end
$$;
comment on function procjobs.clean_table(text, bigint) is 'Works a table''s policy in the caller''s transaction, up to p_max_rows rows. Returns how many.';

drop function if exists procjobs.run_retention(integer);
create or replace function procjobs.run_retention(policy text default null, max_rows integer default null)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if policy is null then
    return procjobs.forget_ended_jobs(coalesce(max_rows, 5000));
  end if;
  return procjobs.clean_table(policy, coalesce(max_rows, 10000));
end
$$;
comment on function procjobs.run_retention(text, integer) is
  'Without a policy: one pass over jobs that ended (procjobs.forget_ended_jobs), as upkeep does once a minute; null when another pass is under way. '
  'With the name of a table''s policy: works it in this transaction, up to max_rows rows (10000), and returns how many were deleted or set. '
  'For more, with a commit after each batch: call procjobs.work_retention(policy).';

create or replace procedure procjobs.work_retention(policy text, inout rows bigint default 0)
language plpgsql
as $$
declare
  v_run procjobs.cleaning;
  v_expected bigint;
  v_before integer;
  v_at double precision;
begin
  -- A procedure that commits cannot have a SET clause: the path is pinned anew in each transaction.
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  v_expected := procjobs.expect_rows(policy);
  v_run := procjobs.begin_as(procjobs.begin_cleaning(policy, v_expected));
  commit;
  while not v_run.finished loop
    v_at := procjobs.stopwatch();
    v_before := v_run.batches;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    set constraints all immediate;
    v_run := procjobs.clean_step(v_run, 9223372036854775807);
    commit;
    v_run := procjobs.clean_pace(v_run, v_before, procjobs.stopwatch() - v_at);
    if v_run.next = 1 or v_run.finished then
      perform procjobs.note_cleaning(v_run);
      perform procjobs.progress(least(99, 100.0 * v_run.rows / nullif(v_expected, 0)), pg_catalog.format('%s rows', v_run.rows));
      commit;
    end if;
  end loop;

  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  perform procjobs.finish_cleaning(v_run, policy);
  rows := v_run.rows;
  if v_run.error is not null then
    commit;
    perform procjobs.raise_cleaning(v_run, policy);
  end if;
end
$$;
comment on procedure procjobs.work_retention(text, bigint) is
  'Works a table''s policy until nothing is left, with a commit after each batch, so that no lock is held for more than 100 ms: call procjobs.work_retention(''cleanup_sessions''). '
  'May be stopped at any time; the next call goes on. Not within a transaction. Gives the number of rows.';
