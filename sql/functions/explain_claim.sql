-- Explaining the claim: does each of the engine's hot statements still find its rows by its index?
-- Owns:        nothing; plans statements and runs none of them.
-- Lock order:  none that anybody waits for; a plan locks no row.

create or replace function procjobs.hot_statements()
returns table (place integer, statement text, index_name text, definition text, types text, arguments text, query text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  values
    (1, 'front of a queue', 'pj_jobs_ready',
      '(queue_name, priority desc, id) where status = ''todo'' and pj_waits_for is null',
      'text, integer, boolean', '''default'', 10, true',
      'select j.id, j.priority, j.lock, j.task_name from public.procrastinate_jobs j
       where j.status = ''todo'' and j.pj_waits_for is null and j.queue_name = $1 and ($3 or j.lock is null)
       order by j.priority desc, j.id limit $2 for update skip locked'),
    (2, 'running job of a lock', 'procrastinate_jobs_lock_idx_v1',
      '(lock) where status = ''doing'' and lock is not null',
      'text', '''x''',
      'select 1 from public.procrastinate_jobs d where d.lock = $1 and d.status = ''doing'''),
    (3, 'claimable jobs of a lock', 'pj_jobs_ready_lock',
      '(lock, priority desc, id) where status = ''todo'' and pj_waits_for is null and lock is not null',
      'text', '''x''',
      'select r.id from public.procrastinate_jobs r where r.lock = $1 and r.status = ''todo'' and r.pj_waits_for is null
       order by r.priority desc, r.id limit 1'),
    (4, 'next job of a lock', 'pj_jobs_held_lock',
      '(lock, priority desc, id) where status = ''todo'' and pj_waits_for = ''lock''',
      'text', '''x''',
      'select h.id from public.procrastinate_jobs h where h.lock = $1 and h.status = ''todo'' and h.pj_waits_for = ''lock''
       order by h.priority desc, h.id limit 1'),
    (5, 'next job of a limit', 'pj_jobs_held_limit',
      '(pj_held_by, priority desc, id) where status = ''todo'' and pj_waits_for = ''limit''',
      'text, integer', '''x'', 10',
      'select j.id from public.procrastinate_jobs j
       where j.status = ''todo'' and j.pj_waits_for = ''limit'' and j.pj_held_by = $1
       order by j.priority desc, j.id limit $2 for update skip locked'),
    (6, 'due jobs', 'pj_jobs_due',
      '(scheduled_at) where status = ''todo'' and pj_waits_for = ''time''',
      'timestamptz, integer', 'procjobs.clock(), 10000',
      'select j.id from public.procrastinate_jobs j
       where j.status = ''todo'' and j.pj_waits_for = ''time'' and j.scheduled_at <= $1
       order by j.scheduled_at limit $2 for update skip locked'),
    (7, 'jobs that a worker runs', 'pj_jobs_running',
      '(worker_id) where status = ''doing''',
      'bigint', '1',
      'select j.id from public.procrastinate_jobs j where j.worker_id = $1 and j.status = ''doing'' and j.abort_requested'),
    (8, 'finish by id', 'procrastinate_jobs_pkey',
      '(id)',
      'bigint[], integer[], bigint', '''{1}'', ''{1}'', 1',
      'delete from public.procrastinate_jobs j using unnest($1, $2) as f(id, lease)
       where j.id = any ($1) and j.id = f.id and j.pj_lease = f.lease and j.worker_id = $3
         and j.status is not distinct from ''doing''')
$$;
comment on function procjobs.hot_statements() is
  'The inner statements of claim, upkeep and finish, as their functions run them, and the index that each goes by.';

create or replace function procjobs.plan_lines(p_types text, p_query text, p_arguments text, p_joins boolean)
returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = on
set enable_nestloop = on
set enable_mergejoin = on
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  -- The settings of the function that runs it: claim_jobs and promote_due, or finish_jobs.
  perform set_config('enable_bitmapscan', p_joins::text, true);
  perform set_config('enable_nestloop', (not p_joins)::text, true);
  perform set_config('enable_mergejoin', (not p_joins)::text, true);
  execute format('prepare procjobs_explain_claim (%s) as %s', p_types, p_query);
  begin
    return query execute format('explain (costs off) execute procjobs_explain_claim (%s)', p_arguments);
  exception
    when others then
      deallocate procjobs_explain_claim;
      raise;
  end;
  deallocate procjobs_explain_claim;
end
$$;
comment on function procjobs.plan_lines(text, text, text, boolean) is
  'The generic plan of a statement under the settings of claim_jobs or, with p_joins, of finish_jobs.';

create or replace function procjobs.claim_plans()
returns table (statement text, plan text[], problem text, mend text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hot record;
  v_index record;
  v_table text := 'public.procrastinate_jobs'::regclass::text;
  v_create text;
begin
  for v_hot in select * from procjobs.hot_statements() h order by h.place loop
    select i.indexrelid::regclass::text as name, i.indisvalid as valid, pg_relation_size(i.indexrelid) as size into v_index
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    where i.indrelid = 'public.procrastinate_jobs'::regclass
      and c.relname = v_hot.index_name;
    statement := v_hot.statement;
    plan := array(
      select p from procjobs.plan_lines(v_hot.types, v_hot.query, v_hot.arguments, v_hot.query like 'delete%') p
    );
    v_create := format('create %sindex concurrently %I on %s %s',
      case when v_hot.index_name like 'procrastinate%' then 'unique ' else '' end, v_hot.index_name, v_table, v_hot.definition);
    problem := case
      when v_index.name is null then format('index %s is missing', v_hot.index_name)
      when not v_index.valid then format('index %s is invalid: building it was broken off', v_hot.index_name)
      when v_index.size <= 2 * 8192 then null  -- next to nothing is in it: any index will do, and the planner may toss a coin
      when not exists (select from unnest(plan) l where l ~ (' (using|on) ' || v_hot.index_name || '( |$)'))
        then format('the planner does not take index %s', v_hot.index_name)
      when v_hot.query ~ 'order by' and exists (select from unnest(plan) l where l ~ '\mSort\M')
        then format('the planner sorts, although index %s has the order', v_hot.index_name)
    end;
    mend := case
      when problem is null then null
      when v_index.name is null then v_create
      when not v_index.valid then format('reindex index concurrently %s', v_index.name)
      else format('analyze %s; look for enable_ settings of the database and the role, and whether the index is still: %s', v_table, v_create)
    end;
    return next;
  end loop;
end
$$;
comment on function procjobs.claim_plans() is
  'Each hot statement with its plan, and what is wrong with that, if anything. Definer: the reader role has no rights on tables; nothing is run.';

create or replace function procjobs.explain_claim()
returns table (statement text, line text)
language sql
set search_path = pg_catalog, pg_temp
as $$
  with planned as materialized (
    select p.*, row_number() over () as place from procjobs.claim_plans() p
  )
  select s.statement, s.line
  from (
    select 1 as part, p.place, l.n, p.statement, l.line
    from planned p
    cross join lateral unnest(p.plan) with ordinality as l(line, n)
    union all
    select 2, p.place, 1, 'verdict', case
      when p.problem is null then format('ok: %s', p.statement)
      else format('warning: %s: %s; %s', p.statement, p.problem, p.mend)
    end
    from planned p
  ) s
  order by s.part, s.place, s.n
$$;
comment on function procjobs.explain_claim() is
  'How PostgreSQL would run the inner statements of claim, upkeep and finish now, and for each a verdict: ok, or a warning with its mend when it does not go by its index. '
  'Nothing is run and no row is locked.';
