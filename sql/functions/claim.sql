-- The claim: a worker takes jobs.
-- Owns:        the step todo -> doing.
-- Lock order:  procrastinate_jobs, skipping whatever another transaction has locked; it never waits for a row.
-- A claim is (job, worker, lease): pj_lease grows with every claim, so that a worker that lost a job and comes back later
-- cannot end a run that is no longer its own, not even when it is the same worker that runs it again.
-- Plans are generic: making one anew for each claim costs more than the claim of a few jobs itself.

create or replace function procjobs.first_jobs(p_queues text[], p_but text default null)
returns table (queue text, priority integer, id bigint)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
begin
  if p_queues is not null then
    return query
    select q.name, first.priority, first.id
    from unnest(p_queues) as q(name)
    cross join lateral (
      select j.priority, j.id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = q.name
      order by j.priority desc, j.id
      limit 1
    ) first
    where q.name is distinct from p_but;
    return;
  end if;

  -- A loose scan over the claim's index: one probe a queue, however many jobs are in it. No queue's name is ''.
  queue := '';
  loop
    if queue < p_but then
      -- In two parts, so that nothing of p_but is passed.
      select j.queue_name, j.priority, j.id
      into queue, priority, id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name > queue
        and j.queue_name < p_but
      order by j.queue_name, j.priority desc, j.id
      limit 1;
      if not found then
        queue := p_but;
        continue;
      end if;
    else
      select j.queue_name, j.priority, j.id
      into queue, priority, id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name > queue
      order by j.queue_name, j.priority desc, j.id
      limit 1;
      exit when not found;
    end if;
    return next;
  end loop;
end
$$;
comment on function procjobs.first_jobs(text[], text) is
  'The first claimable job of each of these queues (null: all) that has one. p_but: a queue that is left out, and not looked at.';

create or replace function procjobs.ready_queues()
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select array(select f.queue from procjobs.first_jobs(null) f)
$$;
comment on function procjobs.ready_queues() is 'Names of the queues that hold a claimable job.';

drop function if exists procjobs.start_jobs(bigint[], bigint, jsonb, jsonb);
drop function if exists procjobs.start_jobs(bigint[], bigint, jsonb, jsonb, timestamptz);
create or replace function procjobs.start_jobs(
  p_ids bigint[], p_worker bigint, p_timeouts jsonb, p_granted bigint[], p_keys text[], p_at timestamptz
)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  -- Not with an empty array, which the planner takes for a proof that any partial index will do.
  if p_granted is not null and cardinality(p_ids) > 0 then
    update public.procrastinate_jobs j
    set status = 'doing',
        worker_id = p_worker,
        pj_lease = j.pj_lease + 1,
        pj_started_at = p_at,
        pj_deadline = p_at + coalesce(j.pj_timeout, (p_timeouts ->> j.task_name)::interval),
        pj_limits = f.keys
    from (
      select i.id, g.keys
      from unnest(p_ids) as i(id)
      left join (
        select h.id, array_agg(h.key) as keys from unnest(p_granted, p_keys) as h(id, key) group by h.id
      ) g on g.id = i.id
    ) f
    where j.id = any (p_ids)
      and j.id = f.id;
  elsif cardinality(p_ids) > 0 then
    update public.procrastinate_jobs j
    set status = 'doing',
        worker_id = p_worker,
        pj_lease = j.pj_lease + 1,
        pj_started_at = p_at,
        pj_deadline = p_at + coalesce(j.pj_timeout, (p_timeouts ->> j.task_name)::interval),
        pj_limits = null
    where j.id = any (p_ids);
  end if;
  return coalesce(p_ids, '{}');
end
$$;
comment on function procjobs.start_jobs(bigint[], bigint, jsonb, bigint[], text[], timestamptz) is
  'Starts jobs that the caller has locked and judged; p_granted, p_keys: who of them has a grant of which key; p_at: when, as those counted it. Returns their ids.';

drop function if exists procjobs.claim_jobs(bigint, text[], integer);
create or replace function procjobs.claim_jobs(p_worker bigint, p_queues text[], p_max_jobs integer)
returns table (
  id bigint,
  lease integer,
  task_name text,
  args text,
  lock text,
  attempts integer,
  queue_name text,
  priority integer,
  queueing_lock text,
  scheduled_at timestamptz,
  max_attempts integer,
  timeout_seconds double precision
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_queues text[];
  v_context record;
  -- Where jobs had to be judged a moment ago, the next ones most likely have to be too.
  v_judge constant boolean := current_setting('procjobs.judging', true) <> ''
    and current_setting('procjobs.judging', true)::double precision - procjobs.stopwatch() between 0 and 10;
  v_front text[];
  v_chosen bigint[];
  v_priorities integer[];
  v_firsts bigint[];
  v_count integer := 0;
  v_started bigint[];
begin
  -- In one look, since a claim of a few jobs must be quick.
  select
    -- A worker asks at each heartbeat which SQL tasks it may run, so that no claim has to look. session_user is a name, whose
    -- collation would pass to all functions called with these tasks, and keep them from their indexes.
    case
      when w.kind = 'session' then procjobs.runnable_sql_tasks(session_user::text collate "default")
      else w.tasks || w.sql_tasks
    end as tasks,
    w.kind = 'session' as session,
    exists (select from public.procrastinate_jobs j where j.status = 'todo' and j.pj_waits_for = 'task') as parked,
    array(select s.name::text from procjobs.queue_settings s where s.paused_at is not null) as paused,
    array(
      select s.name::text from procjobs.queue_settings s where s.fair or s.ageing is not null
      union all
      select l.queue from procjobs.limits l where l.queue is not null
    ) as special,
    array(
      select s.task::text from procjobs.task_settings s where s.paused_at is not null
      union all
      select t from procjobs.limits l, unnest(array_append(l.tasks, l.task)) t where l.queue is null and t is not null
    ) as judged,
    w.kind <> 'session'
      and not exists (select from procjobs.limits l where l.queue is null and l.task is null and l.tasks is null) as may_be_plain,
    (select jsonb_object_agg(p.task, p.timeout) from procjobs.task_policies p where p.timeout is not null) as timeouts
  into v_context
  from procjobs.worker_state w
  where w.id = p_worker
    and w.dead_at is null
    and w.stopped_at is null;
  if not found then
    raise exception 'worker % is not registered any more', p_worker
      using errcode = 'PJ011',
            detail = 'its heartbeat was missing for a whole lease, or it was stopped; its jobs were given to others',
            hint = 'register again with procjobs.register_worker; procjobs worker does so by itself';
  end if;

  if v_context.parked then
    perform procjobs.unpark_jobs(v_context.tasks, p_queues, p_max_jobs);
  end if;
  if current_setting('procjobs.front', true) <> '' and v_judge is not true and v_context.may_be_plain then
    v_front := procjobs.known_front(p_queues, v_context.paused, v_context.special);
    if v_front is not null then
      v_chosen := procjobs.choose_from_front(v_front, v_context.tasks, v_context.judged, p_max_jobs);
    end if;
  end if;
  if v_chosen is not null then
    v_queues := v_front[1:1];
  elsif cardinality(p_queues) = 1 then
    v_queues := case when p_queues[1] <> all (v_context.paused) then p_queues end;
  else
    -- In the order of their first jobs.
    select
      array_agg(f.queue order by f.priority desc, f.id),
      array_agg(f.priority order by f.priority desc, f.id),
      array_agg(f.id order by f.priority desc, f.id)
    into v_queues, v_priorities, v_firsts
    from procjobs.first_jobs(p_queues) f
    where f.queue <> all (v_context.paused);
  end if;
  if coalesce(v_queues, '{}') = '{}' then
    return;
  end if;

  -- Most claims find that the next jobs are of one queue and need no judging: no lock, no limit, a task that is known and not paused.
  if v_context.may_be_plain and not v_queues && v_context.special and v_judge is not true then
    return query
    with taken as (
      update public.procrastinate_jobs j
      set status = 'doing',
          worker_id = p_worker,
          pj_lease = j.pj_lease + 1,
          pj_started_at = v_now,
          pj_deadline = v_now + coalesce(j.pj_timeout, (v_context.timeouts ->> j.task_name)::interval),
          pj_limits = null
      where j.id = any (case when v_chosen is not null then v_chosen else array(
        select judged.id
        from (
          select
            front.id,
            bool_and(
              front.lock is null and front.task_name = any (v_context.tasks) and front.task_name <> all (v_context.judged)
            ) over () as all_plain
          from (
            select c.id, c.priority, c.lock, c.task_name
            from public.procrastinate_jobs c
            where c.status = 'todo'
              and c.pj_waits_for is null
              and c.queue_name = v_queues[1]
            order by c.priority desc, c.id
            limit p_max_jobs
            for update skip locked
          ) front
          where v_firsts[2] is null
            or front.priority > v_priorities[2]
            or front.priority = v_priorities[2] and front.id < v_firsts[2]
        ) judged
        where judged.all_plain
      ) end)
      returning j.*
    )
    select
      s.id, s.pj_lease, s.task_name::text, s.args::text, s.lock, s.attempts, s.queue_name::text, s.priority, s.queueing_lock,
      case when s.scheduled_at between '0001-01-02' and '9999-12-30' then s.scheduled_at end,  -- what a worker can read
      s.pj_max_attempts, extract(epoch from s.pj_deadline - v_now)::double precision
    from taken s
    order by s.priority desc, s.id;
    get diagnostics v_count = row_count;
    -- Not after each single job of an idle queue, whose claim it would make longer.
    if v_chosen is null and v_count = p_max_jobs and (v_count > 1 or procjobs.stopwatch() - extract(epoch from v_now) > 0.002) then
      perform procjobs.find_front(v_queues[1]);
    end if;
    if v_count = p_max_jobs
      or v_count > 0 and cardinality(v_queues) = 1
      or not exists (
        select
        from public.procrastinate_jobs j
        where j.status = 'todo'
          and j.pj_waits_for is null
          and j.queue_name = any (v_queues)
      )
    then
      return;
    end if;
    if 2 * v_count < p_max_jobs then
      perform set_config('procjobs.judging', (procjobs.stopwatch() + 0.1)::text, false);
    end if;
  end if;

  -- Only when it is done: rows that were returned would stay returned if the pass that took them is undone.
  v_started := procjobs.claim_judged(
    p_worker, p_queues, v_queues, p_max_jobs - v_count, v_context.tasks, v_context.timeouts, v_context.session);
  if v_started <> '{}' then
    return query
    select
      s.id, s.pj_lease, s.task_name::text, s.args::text, s.lock, s.attempts, s.queue_name::text, s.priority, s.queueing_lock,
      case when s.scheduled_at between '0001-01-02' and '9999-12-30' then s.scheduled_at end,
      s.pj_max_attempts, extract(epoch from s.pj_deadline - v_now)::double precision
    from public.procrastinate_jobs s
    where s.id = any (v_started)
    order by s.priority desc, s.id;
  end if;
end
$$;
comment on function procjobs.claim_jobs(bigint, text[], integer) is
  'Claims up to p_max_jobs jobs for a registered worker, from these queues (null: all), by priority and id. '
  'Paused queues, jobs not due, held locks and unknown tasks are passed over. Ends with PJ011 when the worker was declared dead. '
  'Definer: the worker role has no rights on tables.';
