-- Retention of jobs: forgetting those that ended, by the policies of procjobs.retention.
-- Owns:        deletes from job_history, and of ended jobs from procrastinate_jobs, with their attempts and events; retention_marks, retention_log.
-- Lock order:  an advisory lock (one pass at a time); job_history, procrastinate_jobs, skipping locked rows; job_attempts,
--              job_events. A pass that drops a partition does nothing else.
-- Every pass is bounded by rows; what is left is said in upkeep_state, and the next round goes on. What was looked at once
-- is not looked at again: ages have a watermark each (chore retention:age ...), numbers are counted as jobs come (retention_marks).

create or replace function procjobs.retention_condition(p_policy bigint, p_state text, p_queue text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(' and ',
    format('j.status = %L', r.state),
    case when coalesce(nullif(p_queue, ''), r.queue) is not null
      then format('j.queue_name = %L', coalesce(nullif(p_queue, ''), r.queue)) end,
    case when r.task is not null then format('j.task_name = %L', r.task) end,
    case when r.except_tasks <> '{}' then format('j.task_name <> all (%L::text[])', r.except_tasks) end,
    case when r.except_queues <> '{}' then format('j.queue_name <> all (%L::text[])', r.except_queues) end)
  from procjobs.retention r
  where r.id = p_policy
    and r.state = p_state
$$;
comment on function procjobs.retention_condition(bigint, text, text) is
  'The jobs j of a policy and state (and queue) as a condition, written out so that the planner sees which index serves.';

create or replace function procjobs.forget_batch(
  p_condition text, p_kept_too boolean, p_from timestamptz, p_to timestamptz, p_to_id bigint, p_max_rows integer
)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_ids bigint[];
  v_kept bigint[];
begin
  execute format(
    'with gone as (
       delete from procjobs.job_history h
       using (
         select j.id, j.finished_at
         from procjobs.job_history j
         where j.finished_at >= $1
           and j.finished_at <= $2
           and (j.finished_at < $2 or j.id <= $3)
           and %s
           and (j.batch is null or not exists (select from procjobs.job_batches b where b.id = j.batch and b.finished_at is null))
         order by j.finished_at
         limit $4
         for update skip locked
       ) old
       where h.id = old.id
         and h.finished_at = old.finished_at
       returning h.id
     )
     select array_agg(g.id) from gone g', p_condition
  ) into v_ids using p_from, p_to, p_to_id, p_max_rows;

  if p_kept_too then
    execute format(
      'with gone as (
         delete from public.procrastinate_jobs
         where id = any (array(
           select j.id
           from public.procrastinate_jobs j
           where j.status in (''succeeded'', ''failed'', ''cancelled'', ''aborted'')
             and j.pj_finished_at >= $1
             and j.pj_finished_at <= $2
             and (j.pj_finished_at < $2 or j.id <= $3)
             and %s
             and (j.pj_batch is null or not exists (select from procjobs.job_batches b where b.id = j.pj_batch and b.finished_at is null))
           order by j.pj_finished_at
           limit $4
           for update skip locked
         ))
         returning id
       )
       select array_agg(g.id) from gone g', p_condition
    ) into v_kept using p_from, p_to, p_to_id, p_max_rows - coalesce(cardinality(v_ids), 0);
  end if;
  v_ids := v_ids || v_kept;
  perform procjobs.forget_traces(v_ids);
  return coalesce(cardinality(v_ids), 0);
end
$$;
comment on function procjobs.forget_batch(text, boolean, timestamptz, timestamptz, bigint, integer) is
  'Deletes jobs of a condition that ended from p_from to (p_to, p_to_id), the oldest first, at most p_max_rows; jobs of a batch that has not finished stay. Returns how many.';

create or replace function procjobs.forget_traces(p_ids bigint[])
returns void
language sql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  delete from procjobs.job_attempts where job_id = any (p_ids);
  delete from procjobs.job_events where job_id = any (p_ids);
$$;
comment on function procjobs.forget_traces(bigint[]) is 'Deletes the attempts and events of jobs.';

create or replace function procjobs.forget_old(p_policy bigint, p_state text, p_max_rows integer)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_chore text := format('retention:age %s %s', p_policy, p_state);
  v_max_age interval;
  v_kept_too boolean;
  v_to timestamptz;
  v_count integer;
begin
  select r.max_age, not r.built_in into v_max_age, v_kept_too
  from procjobs.retention r
  where r.id = p_policy
    and r.state = p_state;

  v_to := procjobs.clock() - v_max_age;
  if v_max_age >= interval '1 day' then
    -- Whole days: so that partitions are dropped, not emptied row by row.
    v_to := date_trunc('day', v_to at time zone 'UTC') at time zone 'UTC';
  end if;
  v_count := procjobs.forget_batch(
    procjobs.retention_condition(p_policy, p_state, null),
    v_kept_too,
    coalesce((select s.position::timestamptz from procjobs.upkeep_state s where s.chore = v_chore), '-infinity'),
    v_to, 0, p_max_rows
  );
  if v_count < p_max_rows then
    -- Some minutes again next time, for what was committed late.
    insert into procjobs.upkeep_state as s (chore, ran_at, position)
    values (v_chore, procjobs.clock(), (v_to - interval '10 minutes')::text)
    on conflict (chore) do update
      set ran_at = excluded.ran_at,
          position = excluded.position;
  end if;
  return v_count;
end
$$;
comment on function procjobs.forget_old(bigint, text, integer) is 'Deletes what is older than a policy''s max_age. Returns how many jobs.';

create or replace function procjobs.count_for_retention(p_max_rows integer default 20000)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_from timestamptz;
  v_to timestamptz := procjobs.clock() - interval '5 seconds';
  v_full timestamptz;
begin
  if not exists (select from procjobs.retention r where r.keep_last is not null) then
    return false;
  end if;
  v_from := coalesce((select s.position::timestamptz from procjobs.upkeep_state s where s.chore = 'retention:counted'), '-infinity');
  v_full := least(
    (select h.finished_at from procjobs.job_history h
     where h.finished_at > v_from order by h.finished_at offset p_max_rows limit 1),
    (select j.pj_finished_at from public.procrastinate_jobs j
     where j.status in ('succeeded', 'failed', 'cancelled', 'aborted') and j.pj_finished_at > v_from
     order by j.pj_finished_at offset p_max_rows limit 1)
  );
  v_to := least(v_to, v_full);

  with ended as (
    select e.queue_name::text as queue, e.task_name::text as task, e.status::text as state, min(e.at) as first_at, max(e.at) as last_at, count(*) as jobs
    from (
      select h.queue_name, h.task_name, h.status, h.finished_at as at
      from procjobs.job_history h
      where h.finished_at > v_from and h.finished_at <= v_to
      union all
      select j.queue_name, j.task_name, j.status, j.pj_finished_at
      from public.procrastinate_jobs j
      where j.status in ('succeeded', 'failed', 'cancelled', 'aborted') and j.pj_finished_at > v_from and j.pj_finished_at <= v_to
    ) e
    group by 1, 2, 3
  )
  insert into procjobs.retention_marks (policy_id, state, queue, first_at, last_at, jobs)
  select r.id, r.state, case when r.task is null then e.queue else '' end, min(e.first_at), max(e.last_at), sum(e.jobs)
  from ended e
  join procjobs.retention r
    on r.state = e.state
   and (r.task = e.task or r.task is null and (r.queue = e.queue or r.queue is null))
   and e.task <> all (r.except_tasks)
   and e.queue <> all (r.except_queues)
  where r.keep_last is not null
  group by 1, 2, 3
  on conflict do nothing;

  insert into procjobs.upkeep_state as s (chore, ran_at, position)
  values ('retention:counted', procjobs.clock(), greatest(v_from, v_to)::text)
  on conflict (chore) do update
    set ran_at = excluded.ran_at,
        position = excluded.position;
  return coalesce(v_full < procjobs.clock() - interval '5 seconds', false);
end
$$;
comment on function procjobs.count_for_retention(integer) is
  'Counts the jobs that ended since the last call, up to five seconds ago (what ends is seen when it is committed), for the policies with keep_last. True: there are more.';

create or replace function procjobs.forget_all_but_last(p_policy bigint, p_state text, p_queue text, p_max_rows integer)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_condition text := procjobs.retention_condition(p_policy, p_state, p_queue);
  v_keep integer := (select r.keep_last from procjobs.retention r where r.id = p_policy and r.state = p_state);
  v_first timestamptz;
  v_at timestamptz;
  v_id bigint;
  v_count integer := 0;
begin
  -- The newest that goes. The marks do not overlap: the newest first, and of each its newest first.
  execute format(
    'select e.at, e.id
     from (
       select m.first_at, m.last_at from procjobs.retention_marks m
       where m.policy_id = $1 and m.state = $2 and m.queue = $3
       order by m.last_at desc
     ) m
     cross join lateral (%s) e
     offset $4 limit 1', procjobs.ended_between(v_condition, 'm.first_at', 'm.last_at', 'limit $4 + 1')
  ) into v_at, v_id using p_policy, p_state, p_queue, v_keep;

  if v_at is not null then
    v_first := (
      select min(m.first_at) from procjobs.retention_marks m
      where m.policy_id = p_policy and m.state = p_state and m.queue = p_queue
    );
    v_count := procjobs.forget_batch(v_condition, true, v_first, v_at, v_id, p_max_rows);
    if v_count >= p_max_rows then
      return v_count;
    end if;
    delete from procjobs.retention_marks m
    where m.policy_id = p_policy and m.state = p_state and m.queue = p_queue and m.last_at < v_at;
    update procjobs.retention_marks m
    set first_at = v_at
    where m.policy_id = p_policy and m.state = p_state and m.queue = p_queue and m.first_at < v_at;
  end if;

  -- What is left, counted again: some may have been retried or deleted by hand meanwhile.
  execute format(
    'update procjobs.retention_marks m
     set jobs = (select count(*) from (%s) e)
     where m.policy_id = $1 and m.state = $2 and m.queue = $3 and ($4::timestamptz is null or m.first_at <= $4)',
    procjobs.ended_between(v_condition, 'm.first_at', 'm.last_at', '')
  ) using p_policy, p_state, p_queue, v_at;
  delete from procjobs.retention_marks m
  where m.policy_id = p_policy and m.state = p_state and m.queue = p_queue and m.jobs = 0;
  return v_count;
end
$$;
comment on function procjobs.forget_all_but_last(bigint, text, text, integer) is
  'Deletes what goes beyond a policy''s keep_last, as far as it is counted. Returns how many jobs.';

create or replace function procjobs.ended_between(p_condition text, p_from text, p_to text, p_limit text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select format(
    'select u.at, u.id
     from (
       (select j.finished_at as at, j.id from procjobs.job_history j
        where j.finished_at >= %2$s and j.finished_at <= %3$s and %1$s
        order by j.finished_at desc %4$s)
       union all
       (select j.pj_finished_at, j.id from public.procrastinate_jobs j
        where j.status in (''succeeded'', ''failed'', ''cancelled'', ''aborted'')
          and j.pj_finished_at >= %2$s and j.pj_finished_at <= %3$s and %1$s
        order by j.pj_finished_at desc %4$s)
     ) u
     order by u.at desc, u.id desc %4$s', p_condition, p_from, p_to, p_limit)
$$;
comment on function procjobs.ended_between(text, text, text, text) is 'The query for jobs that ended within a span, the newest first.';

create or replace function procjobs.forget_orphans(p_table text, p_at text, p_max_rows integer)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_chore text := 'forget_orphans ' || p_table;
  v_until timestamptz;
  v_after bigint;
  v_last bigint;
  v_seen integer;
  v_count integer;
begin
  -- Up to when partitions were dropped, and up to which row this was done.
  select s.ran_at, s.position::bigint into v_until, v_after
  from procjobs.upkeep_state s
  where s.chore = v_chore;
  if not found then
    return 0;
  end if;

  execute format(
    'with seen as materialized (
       select t.id, t.job_id from procjobs.%1$I t where t.id > $1 order by t.id limit $3
     ),
     gone as (
       delete from procjobs.%1$I t
       using seen s
       where t.id = s.id
         and t.%2$I < $2
         and not exists (select from public.procrastinate_jobs j where j.id = s.job_id)
         and not exists (select from procjobs.job_history h where h.id = s.job_id)
       returning t.id
     )
     select (select max(s.id) from seen s), (select count(*) from seen), (select count(*) from gone)', p_table, p_at
  ) into v_last, v_seen, v_count using v_after, v_until, p_max_rows;

  if v_seen < p_max_rows then
    delete from procjobs.upkeep_state where chore = v_chore;
  else
    update procjobs.upkeep_state set position = v_last::text where chore = v_chore;
  end if;
  return v_count;
end
$$;
comment on function procjobs.forget_orphans(text, text, integer) is
  'Deletes rows about jobs that are nowhere any more, looking at the next p_max_rows; begun by look_for_orphans. Returns how many.';

create or replace function procjobs.look_for_orphans(p_until timestamptz)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.upkeep_state as s (chore, ran_at, position)
  values ('forget_orphans job_attempts', p_until, '0'), ('forget_orphans job_events', p_until, '0')
  on conflict (chore) do update
    set ran_at = greatest(s.ran_at, excluded.ran_at),
        position = '0'
$$;
comment on function procjobs.look_for_orphans(timestamptz) is
  'Lets the next passes delete attempts and events, older than this, of jobs that are nowhere any more.';

create or replace function procjobs.forget_by_policy(p_max_rows integer, out jobs integer, out detail jsonb, out more boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rule record;
  v_count integer;
  v_orphans integer;
begin
  jobs := 0;
  detail := '{}';
  for v_rule in
    select r.id, r.state, procjobs.retention_in_words(r.queue, r.task, r.state, r.max_age, r.keep_last) as words
    from procjobs.retention r
    where r.max_age is not null
    order by r.id, r.state
  loop
    exit when jobs >= p_max_rows;
    v_count := procjobs.forget_old(v_rule.id, v_rule.state, p_max_rows - jobs);
    jobs := jobs + v_count;
    detail := detail || case when v_count > 0 then jsonb_build_object(v_rule.words, v_count) else '{}' end;
  end loop;

  more := procjobs.count_for_retention();
  for v_rule in
    select m.policy_id, m.state, m.queue, procjobs.retention_in_words(
      coalesce(nullif(m.queue, ''), r.queue), r.task, r.state, r.max_age, r.keep_last) as words
    from procjobs.retention_marks m
    join procjobs.retention r on r.id = m.policy_id and r.state = m.state
    group by m.policy_id, m.state, m.queue, r.queue, r.task, r.state, r.max_age, r.keep_last
    having sum(m.jobs) > r.keep_last
    order by 1, 2, 3
  loop
    exit when jobs >= p_max_rows;
    v_count := procjobs.forget_all_but_last(v_rule.policy_id, v_rule.state, v_rule.queue, p_max_rows - jobs);
    jobs := jobs + v_count;
    detail := detail || case when v_count > 0
      then jsonb_build_object(v_rule.words, v_count + coalesce((detail ->> v_rule.words)::integer, 0)) else '{}' end;
  end loop;

  v_orphans := procjobs.forget_orphans('job_attempts', 'finished_at', 2000) + procjobs.forget_orphans('job_events', 'at', 2000);
  detail := detail || case when v_orphans > 0 then jsonb_build_object('attempts and events of forgotten jobs', v_orphans) else '{}' end;
  more := more or jobs >= p_max_rows
    or exists (select from procjobs.upkeep_state s where s.chore in ('forget_orphans job_attempts', 'forget_orphans job_events'));
end
$$;
comment on function procjobs.forget_by_policy(integer) is
  'One bounded round over all policies: by age, by number, and what is left of jobs whose partition was dropped.';

create or replace function procjobs.forget_ended_jobs(p_max_rows integer default 5000)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_began timestamptz := procjobs.wall_clock();
  v_day text;
  v_jobs bigint;
  v_detail jsonb;
  v_more boolean := true;
begin
  if not pg_try_advisory_xact_lock(hashtext('procjobs.retention')) then
    return null;
  end if;
  if procjobs.chore_is_due('restart_retention', interval '1 day') then
    perform procjobs.restart_retention();
    perform procjobs.look_for_orphans(procjobs.clock() - interval '7 days');
    delete from procjobs.retention_log where at < procjobs.clock() - interval '1 year';
  end if;

  select d.day, d.jobs into v_day, v_jobs from procjobs.drop_old_partition() d;
  if v_day is null then
    select f.jobs, f.detail, f.more into v_jobs, v_detail, v_more from procjobs.forget_by_policy(p_max_rows) f;
  end if;
  if v_day is not null or v_detail <> '{}' then
    perform procjobs.note_retention('pass', v_jobs, v_detail,
      case when v_day is not null then array[v_day] end, procjobs.wall_clock() - v_began);
  end if;

  update procjobs.upkeep_state
  set ran_at = '-infinity'
  where chore = 'run_retention'
    and v_more;
  return v_jobs;
end
$$;
comment on function procjobs.forget_ended_jobs(integer) is
  'One pass of the retention of jobs: drops one day of the history whose jobs may all go, else deletes at most p_max_rows jobs. upkeep has it done once a minute, and each second while there is more (run_retention). '
  'Returns how many jobs were forgotten; null when another pass is under way. Definer: the admin role has no rights on tables.';

create or replace function procjobs.delete_old_jobs(
  p_hours integer,
  p_queue text,
  p_statuses text[],
  p_max_rows integer default 5000
)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := procjobs.clock() - make_interval(hours => p_hours);
  v_statuses public.procrastinate_job_status[] := p_statuses::public.procrastinate_job_status[];
  v_archived bigint[];
  v_kept bigint[];
  v_count integer;
begin
  -- Partitions of younger days are not even opened.
  with gone as (
    delete from procjobs.job_history h
    using (
      select o.id, o.finished_at
      from procjobs.job_history o
      where o.finished_at < v_before
        and o.status = any (v_statuses)
        and (p_queue is null or o.queue_name = p_queue)
        and (o.batch is null or not exists (select from procjobs.job_batches b where b.id = o.batch and b.finished_at is null))
      limit p_max_rows
    ) old
    where h.id = old.id
      and h.finished_at = old.finished_at
    returning h.id
  )
  select array_agg(g.id) into v_archived from gone g;

  with gone as (
    delete from public.procrastinate_jobs
    where id = any (array(
      select j.id
      from public.procrastinate_jobs j
      where j.status = any (v_statuses)
        and j.status not in ('todo', 'doing')
        and coalesce(
          j.pj_finished_at,
          (select max(e.at) from public.procrastinate_events e where e.job_id = j.id)
        ) < v_before
        and (p_queue is null or j.queue_name = p_queue)
        and (j.pj_batch is null or not exists (select from procjobs.job_batches b where b.id = j.pj_batch and b.finished_at is null))
      order by j.id
      limit p_max_rows
      for update skip locked
    ))
    returning id
  )
  select array_agg(g.id) into v_kept from gone g;

  perform procjobs.forget_traces(v_archived || v_kept);
  v_count := coalesce(cardinality(v_archived), 0) + coalesce(cardinality(v_kept), 0);
  if v_count > 0 then
    perform procjobs.note_retention('delete_old_jobs', v_count,
      jsonb_build_object('hours', p_hours, 'queue', p_queue, 'states', p_statuses));
  end if;
  return v_count;
end
$$;
comment on function procjobs.delete_old_jobs(integer, text, text[], integer) is
  'Deletes jobs that ended in one of these states more than p_hours ago, at most p_max_rows a call from the history and as many from the job table; '
  'call it until it returns 0. Procrastinate''s remove_old_jobs does. Definer: the worker role has no rights on tables.';
