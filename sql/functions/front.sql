-- The front of a backlog: where the claim's index begins to hold jobs.
-- Owns:        nothing but the setting procjobs.front of a session: queue, priority and id of a queue's first job, and until when.
-- Lock order:  procrastinate_jobs, skipping whatever another transaction has locked.
-- While some transaction stays open, PostgreSQL must keep the index entries of all jobs that were claimed since it began, and each
-- claim passes them. Where that takes long, a session remembers the front for a while that is twenty times as long, at most a second:
-- as long as a claim finds all that it wants from there on, it does not look further in front. What comes in between (a retry,
-- the next job of a lock, an insert that was committed late) waits so much longer. A job of a higher priority or of another queue does not.

drop function if exists procjobs.known_front(text[]);
create or replace function procjobs.known_front(p_queues text[], p_paused_queues text[], p_special_queues text[])
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_front text[] := nullif(current_setting('procjobs.front', true), '');
  v_next record;
begin
  if v_front is null or v_front[1] = '' or v_front[1] <> all (p_queues) then
    return null;
  end if;
  -- Further ahead than ever one is set: the clock was set back.
  if v_front[4]::double precision - procjobs.stopwatch() not between 0 and 10 then
    v_front := procjobs.find_front(v_front[1]);
  end if;
  if v_front[1] = any (array_cat(p_paused_queues, p_special_queues) || ''::text) or exists (
    select
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for is null
      and j.queue_name = v_front[1]
      and j.priority > v_front[2]::integer
  ) then
    return null;
  end if;
  if cardinality(p_queues) = 1 then
    return v_front[1:4];
  end if;

  select f.priority, f.id, f.queue = any (p_special_queues) as special
  into v_next
  from procjobs.first_jobs(p_queues, v_front[1]) f
  where f.queue <> all (p_paused_queues)
  order by special desc, f.priority desc, f.id
  limit 1;
  if v_next.special or (v_next.priority, -v_next.id) > (v_front[2]::integer, -v_front[3]::bigint) then
    return null;
  end if;
  return v_front[1:4] || case when v_next.priority = v_front[2]::integer then v_next.id::text end;
end
$$;
comment on function procjobs.known_front(text[], text[], text[]) is
  'The front that this session remembers, found again when its time is over, if a claim over these queues (null: all) may begin there: nothing goes '
  'before it, and no queue with jobs is fair, ageing or limited. With it the id from which on jobs of other queues go first. Else null.';

create or replace function procjobs.choose_from_front(p_front text[], p_tasks text[], p_judged text[], p_max_jobs integer)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  v_ids bigint[];
  v_plain boolean;
begin
  select
    array_agg(f.id order by f.id),
    bool_and(
      f.lock is null and f.task_name = any (p_tasks) and f.task_name <> all (p_judged)
      and coalesce(f.id < p_front[5]::bigint, true)
    )
  into v_ids, v_plain
  from (
    select c.id, c.lock, c.task_name
    from public.procrastinate_jobs c
    where c.status = 'todo'
      and c.pj_waits_for is null
      and c.queue_name = p_front[1]
      and c.priority = p_front[2]::integer
      and c.id >= p_front[3]::bigint
    order by c.priority desc, c.id
    limit p_max_jobs
    for update skip locked
  ) f;
  if v_plain and cardinality(v_ids) = p_max_jobs then
    perform set_config('procjobs.front', array[p_front[1], p_front[2], v_ids[1]::text, p_front[4]]::text, false);
    return v_ids;
  end if;
  perform set_config('procjobs.front', '', false);
  return null;
end
$$;
comment on function procjobs.choose_from_front(text[], text[], text[], integer) is
  'Locks the next p_max_jobs jobs from the front on, which moves up to them. Null, and the front forgotten: there are not so many, or some must be judged.';

create or replace function procjobs.find_front(p_queue text)
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
set enable_bitmapscan = off
as $$
declare
  c_long constant double precision := 0.0003;
  v_began constant double precision := procjobs.stopwatch();
  v_known constant text[] := nullif(current_setting('procjobs.front', true), '');
  v_first record;
  v_ended double precision;
  v_passing double precision;
  v_front text[];
begin
  if v_known[4]::double precision - v_began between 0 and 10 then
    return v_known;
  end if;
  select j.priority, j.id into v_first
  from public.procrastinate_jobs j
  where j.status = 'todo'
    and j.pj_waits_for is null
    and j.queue_name = p_queue
  order by j.priority desc, j.id
  limit 1;
  v_ended := procjobs.stopwatch();
  v_passing := v_ended - v_began;
  v_front := case
    when v_first.id is not null and v_passing > c_long
      then array[p_queue, v_first.priority::text, v_first.id::text, (v_ended + least(1, 20 * v_passing))::text]
    else array['', '', '', (v_ended + 0.1)::text]
  end;
  perform set_config('procjobs.front', v_front::text, false);
  return v_front;
end
$$;
comment on function procjobs.find_front(text) is
  'Finds a queue''s first job and remembers it, if that took long. Asks ten times a second at most, and not before the time of what it knows is over. Returns what it knows.';
