-- Judging: the claim where jobs are not plain.
-- Owns:        which of the next jobs may run, and what the others wait for.
-- Lock order:  procrastinate_jobs, skipping whatever another transaction has locked; it never waits for a row; then limit_state.
-- Locks, limits, unknown and paused tasks, fair and ageing queues, several queues whose jobs stand among each other.

create or replace function procjobs.claim_shares(p_queues text[], p_max_jobs integer)
returns table (queue text, share integer)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
begin
  if cardinality(p_queues) = 1 then
    return query select p_queues[1], p_max_jobs;
    return;
  end if;

  -- How much of the claim each queue gets when all their jobs stand in one line: read without locks, so that
  -- a claim of n jobs never locks more than n rows, however many queues there are.
  return query
  select line.queue, count(*)::integer
  from (
    select q.queue, front.priority, front.id
    from unnest(p_queues) as q(queue)
    cross join lateral (
      select j.priority, j.id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = q.queue
      order by j.priority desc, j.id
      limit p_max_jobs
    ) front
    order by front.priority desc, front.id
    limit p_max_jobs
  ) line
  group by line.queue;
end
$$;
comment on function procjobs.claim_shares(text[], integer) is
  'How many of the next p_max_jobs jobs over these queues, by priority and id, are in each.';

create or replace function procjobs.unpark_jobs(p_tasks text[], p_queues text[], p_max_jobs integer)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_count integer;
  v_locks text[];
begin
  with known as (
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'task'
      and j.task_name = any (p_tasks)
      and (p_queues is null or j.queue_name = any (p_queues))
    limit p_max_jobs
    for update skip locked
  ),
  unparked as (
    update public.procrastinate_jobs
    set pj_waits_for = case when lock is not null then 'lock' end
    where id = any (array(select id from known order by id))
    returning lock
  )
  select count(*), array_agg(distinct lock) filter (where lock is not null)
  into v_count, v_locks
  from unparked;

  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  return v_count;
end
$$;
comment on function procjobs.unpark_jobs(text[], text[], integer) is
  'Makes jobs claimable that waited for a worker that knows their task.';

create or replace function procjobs.set_aside(p_ids bigint[], p_waits_for text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  if p_ids = '{}' then
    return 0;
  end if;
  update public.procrastinate_jobs
  set pj_waits_for = p_waits_for
  where id = any (p_ids);
  return cardinality(p_ids);
end
$$;
comment on function procjobs.set_aside(bigint[], text) is
  'Takes jobs that the caller has locked out of the claim''s index, and notes what they wait for. Returns how many.';

create or replace function procjobs.choose_known_jobs(p_tasks text[], p_queues text[], p_max_jobs integer)
returns bigint[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_ids bigint[];
begin
  if coalesce(p_tasks, '{}') = '{}' then
    return '{}'::bigint[];
  end if;
  v_ids := array(
    select front.id
    from unnest(p_queues) as q(queue)
    cross join lateral (
      select j.id, j.priority, j.task_name
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = q.queue
      order by j.priority desc, j.id
      limit greatest(1000, p_max_jobs)
    ) front
    where front.task_name = any (p_tasks)
    order by front.priority desc, front.id
    limit p_max_jobs
  );
  -- What is further behind is a worker's turn, who comes to it in order. Without one it would wait for ever.
  if v_ids = '{}' and not exists (
    select from procjobs.live_workers() w where w.runs_sql and w.kind = 'worker'
  ) then
    v_ids := array(
      select j.id
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = any (p_queues)
        and j.task_name = any (p_tasks)
      order by j.priority desc, j.id
      limit p_max_jobs
    );
  end if;
  return v_ids;
end
$$;
comment on function procjobs.choose_known_jobs(text[], text[], integer) is
  'The next jobs of these tasks among the first thousand of each queue; where no worker lives, among all.';

drop function if exists procjobs.take_jobs(text[], text[], integer, boolean);
drop function if exists procjobs.take_jobs(text[], text[], integer, boolean, text[], text[], text[]);
create or replace function procjobs.take_jobs(
  p_tasks text[],
  p_queues text[],
  p_max_jobs integer,
  p_with_locks boolean,
  p_paused_queues text[],
  p_paused_tasks text[],
  p_special_queues text[],
  p_only_known boolean
)
returns table (taken bigint[], set_aside integer, overtaken boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_chosen bigint[] := '{}'::bigint[];
  v_unknown bigint[];
  v_halted bigint[];
  v_blocked bigint[];
begin
  if p_only_known then
    v_chosen := procjobs.choose_known_jobs(p_tasks, p_queues, p_max_jobs);
  elsif p_special_queues <> '{}' then
    v_chosen := procjobs.choose_jobs(p_special_queues, p_queues, p_max_jobs);
  end if;

  with shares as materialized (
    select s.queue, s.share
    from procjobs.claim_shares(p_queues, p_max_jobs) s
  ),
  chosen as materialized (
    select j.id, j.priority, j.lock, j.task_name
    from public.procrastinate_jobs j
    where j.id = any (v_chosen)
      and j.status is not distinct from 'todo'
      and j.pj_waits_for is not distinct from null
      and (p_with_locks or j.lock is null)
    for update skip locked
  ),
  candidate as materialized (
    select front.id, front.priority, front.lock, front.task_name, null::integer as place
    from shares s
    cross join lateral (
      select j.id, j.priority, j.lock, j.task_name
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for is null
        and j.queue_name = s.queue
        and (p_with_locks or j.lock is null)
      order by j.priority desc, j.id
      limit s.share
      for update skip locked
    ) front
    where s.queue <> all (p_special_queues)
    union all
    select c.id, c.priority, c.lock, c.task_name, array_position(v_chosen, c.id)
    from chosen c
  ),
  held as (
    select d.lock
    from public.procrastinate_jobs d
    where d.lock = any (array(select c.lock from candidate c where c.lock is not null))
      and d.status = 'doing'
  ),
  judged as materialized (
    select
      c.id,
      c.priority,
      c.place,
      c.task_name = any (p_tasks) as known,
      c.task_name = any (p_paused_tasks) as halted,
      -- `lock is null or` first: without it the planner sorts the backlog.
      c.lock is null or (
        -- Asked for all at once: whatever index the planner takes, it goes through what is running once.
        c.lock not in (select h.lock from held h)
        -- In the order of the index of locks, so that the plan goes by it and not through all that is ready, also as long
        -- as the table was never analyzed.
        and (
          select true
          from public.procrastinate_jobs r
          where r.lock = c.lock
            and r.status = 'todo'
            and r.pj_waits_for is null
            and (r.priority > c.priority or (r.priority = c.priority and r.id < c.id))
            and r.queue_name <> all (p_paused_queues)
          order by r.priority desc, r.id
          limit 1
        ) is null
      ) as free
    from candidate c
  )
  select
    coalesce(
      array_agg(id order by place is null desc, place, priority desc, id) filter (where known and free and not halted), '{}'),
    coalesce(array_agg(id) filter (where halted), '{}'),
    coalesce(array_agg(id) filter (where not known and not halted), '{}'),
    coalesce(array_agg(id) filter (where known and not free and not halted), '{}'),
    cardinality(p_queues) > 1 and not p_only_known and count(*) < (select sum(share) from shares)
  into taken, v_halted, v_unknown, v_blocked, overtaken
  from judged;

  -- What cannot run leaves the claim's index, so that it hides nobody behind it.
  set_aside := cardinality(v_halted) + cardinality(v_unknown) + cardinality(v_blocked);
  if set_aside > 0 then
    perform procjobs.set_aside(v_halted, 'pause'), procjobs.set_aside(v_unknown, 'task'), procjobs.set_aside(v_blocked, 'lock');
  end if;
  if cardinality(v_unknown) > 0 then
    -- A worker that knows the task may have looked while these rows were locked: it is told to look again.
    perform procjobs.wake_queues(array(
      select distinct j.queue_name::text
      from public.procrastinate_jobs j
      where j.id = any (v_unknown)
    ));
  end if;
  return next;
end
$$;
comment on function procjobs.take_jobs(text[], text[], integer, boolean, text[], text[], text[], boolean) is
  'One pass of the claim: locks the next jobs, and sorts them into those that may run (taken) and those set aside '
  'because their task is paused or unknown, or their lock is held. p_only_known: looks only at jobs of these tasks. overtaken: other claims hold some of the jobs in front.';

drop function if exists procjobs.claim_judged(bigint, text[], integer, text[], jsonb);
drop function if exists procjobs.claim_judged(bigint, text[], integer, text[], jsonb, boolean);
create or replace function procjobs.claim_judged(
  p_worker bigint, p_queues text[], p_ready text[], p_max_jobs integer, p_tasks text[], p_timeouts jsonb, p_only_known boolean
)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  c_widest constant integer := 10000;
  v_queues text[];
  v_paused_queues text[];
  v_paused_tasks text[];
  v_special_queues text[];
  v_limited boolean;
  v_ids bigint[];
  v_granted bigint[];
  v_keys text[];
  v_at timestamptz;
  v_away bigint[];
  v_away_by text[];
  v_counted text[];
  v_started bigint[] := '{}'::bigint[];
  v_pass record;
  v_missing integer := p_max_jobs;
  v_width integer := p_max_jobs;
  v_with_locks boolean := true;
begin
  -- Few passes: more than one only where jobs had to be set aside, where other claims hold those in front, or another
  -- worker won a race for a lock. Each looks further, so that nothing in front hides what is behind.
  for v_round in 1 .. 20 loop
    -- Each pass anew, since it may have waited.
    select
      array(select s.name::text from procjobs.queue_settings s where s.paused_at is not null),
      array(select s.name::text from procjobs.queue_settings s where s.fair or s.ageing is not null),
      array(select s.task::text from procjobs.task_settings s where s.paused_at is not null)
    into v_paused_queues, v_special_queues, v_paused_tasks;
    v_queues := array(
      select q
      from unnest(case when v_round = 1 then p_ready else coalesce(p_queues, procjobs.ready_queues()) end) q
      where q <> all (v_paused_queues)
    );
    exit when cardinality(v_queues) = 0;
    v_limited := exists (select from procjobs.limits l where l.queue is null or l.queue = any (v_queues));
    if p_only_known then
      v_special_queues := v_queues;  -- it must not set aside what only others can run
    end if;

    begin
      select t.taken, t.set_aside, t.overtaken into v_pass
      from procjobs.take_jobs(
        p_tasks, v_queues, v_width, v_with_locks, v_paused_queues, v_paused_tasks, v_special_queues, p_only_known
      ) t;

      v_ids := v_pass.taken[1:v_missing];
      v_granted := null;
      v_at := procjobs.clock();
      if v_limited and cardinality(v_ids) > 0 then
        select a.admitted, a.granted, a.keys, a.turned_away, a.turned_by, a.counted, a.at
        into v_ids, v_granted, v_keys, v_away, v_away_by, v_counted, v_at
        from procjobs.admit_jobs(v_pass.taken, v_missing, v_round = 1) a;
        if v_away is not null then
          perform procjobs.turn_away(v_away, v_away_by, v_counted);
          v_pass.set_aside := v_pass.set_aside + cardinality(v_away);
        end if;
      end if;

      v_started := v_started || procjobs.start_jobs(v_ids, p_worker, p_timeouts, v_granted, v_keys, v_at);
      v_missing := v_missing - cardinality(v_ids);
      exit when v_missing <= 0 or v_pass.set_aside = 0 and not (v_pass.overtaken and v_width < c_widest);
      v_width := least(c_widest, greatest(2 * v_width, v_missing, case when v_pass.set_aside > 0 then 200 end));
    exception
      when unique_violation or deadlock_detected then
        -- Somebody else took this lock between our look and our update, or two of us each took one of two and waited
        -- for the other. Look again; at last without locks.
        v_with_locks := v_round < 3;
    end;
  end loop;
  return v_started;
end
$$;
comment on function procjobs.claim_judged(bigint, text[], text[], integer, text[], jsonb, boolean) is
  'The claim where jobs must be judged: locks, limits, unknown and paused tasks, several queues, fair and ageing ones; p_ready: the queues to look into first; '
  'p_only_known: for sessions, which look at nothing else. '
  'Returns the jobs that it started.';
