-- Dead letters whose error passes by itself run again, by rule and not for ever.
-- Owns:        procjobs.retry_rules; job_events of type redriven with a round in their detail.
-- Lock order:  procrastinate_jobs by id, skipping locked rows; job_events.

drop function if exists procjobs.set_retry_rule(text, text, integer, interval);
create or replace function procjobs.set_retry_rule(
  error_class text default null, task text default null, rounds integer default 3, wait interval default '10 minutes', reason text default null
)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(reason);
  v_fault text := case
    when coalesce(error_class, '') = '' and coalesce(task, '') = '' then 'neither error_class nor task is given'
    when length(task) > 128 then format('task has %s characters', length(task))
    when rounds is null or rounds not between 0 and 100 then format('rounds is %s', coalesce(rounds::text, 'null'))
    when wait is null or wait <= interval '0' or wait > interval '7 days' then format('wait is %s', coalesce(wait::text, 'null'))
  end;
begin
  if v_fault is not null then
    raise exception 'this cannot be a rule for retries: %', v_fault
      using errcode = 'PJ009',
            detail = v_fault,
            hint = 'An error class, a task, or both; rounds 0 (never) to 100; wait longer than 0, at most 7 days.';
  end if;
  insert into procjobs.retry_rules as r (task, error_class, rounds, wait, set_at)
  values (coalesce(task, ''), coalesce(error_class, ''), rounds, wait, procjobs.clock())
  on conflict on constraint retry_rules_pkey do update
  set rounds = excluded.rounds,
      wait = excluded.wait,
      built_in = false,
      set_at = excluded.set_at,
      set_by = session_user;
  perform procjobs.give_reason(v_why);
end
$$;
comment on function procjobs.set_retry_rule(text, text, integer, interval, text) is
  'Lets retry_failed_jobs run dead letters again whose last error is of this class, of this task, or both: so many rounds, each wait after it failed, twice as long each further time. '
  'A task''s rule goes before one for any task, a class''s before one for any; rounds => 0 forbids. The reason goes to procjobs.setting_log. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.drop_retry_rule(text, text);
create or replace function procjobs.drop_retry_rule(error_class text default null, task text default null, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_why text := procjobs.give_reason(drop_retry_rule.reason);
  v_found boolean;
begin
  delete from procjobs.retry_rules r
  where r.task = coalesce(drop_retry_rule.task, '')
    and r.error_class = coalesce(drop_retry_rule.error_class, '');
  v_found := found;
  perform procjobs.give_reason(v_why);
  return v_found;
end
$$;
comment on function procjobs.drop_retry_rule(text, text, text) is
  'Forgets a rule of retry_failed_jobs; the reason goes to procjobs.setting_log. False if there is none. Definer: the admin role has no rights on tables.';

create or replace function procjobs.dead_letter_classes()
returns table (mark text, error_class text)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  -- From one fingerprint to the next by the index: as many probes as there are different errors.
  with recursive marks as (
    (
      select j.pj_fingerprint, j.id
      from public.procrastinate_jobs j
      where j.status = 'failed'
        and j.pj_fingerprint is not null
      order by j.pj_fingerprint, j.id
      limit 1
    )
    union all
    select n.pj_fingerprint, n.id
    from marks m
    cross join lateral (
      select j.pj_fingerprint, j.id
      from public.procrastinate_jobs j
      where j.status = 'failed'
        and j.pj_fingerprint > m.pj_fingerprint
      order by j.pj_fingerprint, j.id
      limit 1
    ) n
  )
  select m.pj_fingerprint, (
    select a.error_class
    from procjobs.job_attempts a
    where a.job_id = m.id
      and a.error_class is not null
    order by a.id desc
    limit 1
  )
  from marks m
$$;
comment on function procjobs.dead_letter_classes() is 'The class of each error of which there are dead letters, by fingerprint.';

create or replace function procjobs.retryable_jobs(p_max_jobs integer)
returns table (id bigint, round integer)
language sql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select j.id, d.rounds + 1
  from procjobs.dead_letter_classes() c
  join public.procrastinate_jobs j
    on j.status = 'failed'
   and j.pj_fingerprint = c.mark
   and j.pj_finished_at > procjobs.clock() - interval '30 days'
  left join procjobs.task_policies p on p.task = j.task_name
  cross join lateral (
    select r.rounds, r.wait, r.task <> '' as is_its_own
    from procjobs.retry_rules r
    where r.task in (j.task_name, '')
      and r.error_class in (c.error_class, '')
    order by r.task = '', r.error_class = ''
    limit 1
  ) r
  cross join lateral (
    select count(*)::integer as rounds
    from procjobs.job_events e
    where e.job_id = j.id
      and e.type = 'redriven'
      and e.detail ? 'round'
  ) d
  where d.rounds < r.rounds
    and j.pj_finished_at + r.wait * power(2, d.rounds) <= procjobs.clock()
    -- A task that is never run twice, and an error that its policy does not retry, are left alone, unless the rule names the task.
    and (r.is_its_own or coalesce(j.pj_max_attempts, p.max_attempts) between 2 and j.attempts)
    and j.pj_cancel is null
  order by j.pj_finished_at, j.id
  limit p_max_jobs
$$;
comment on function procjobs.retryable_jobs(integer) is
  'Dead letters that a rule lets run again now, the oldest first, and which round it is. Only those that used up the attempts of a policy with several, unless the rule is for their task.';

create or replace function procjobs.retry_failed_jobs(max_jobs integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[];
  v_rounds integer[];
  v_done bigint[];
begin
  perform procjobs.check_bulk(max_jobs, null);
  select array_agg(r.id order by r.id), array_agg(r.round order by r.id) into v_ids, v_rounds
  from procjobs.retryable_jobs(max_jobs) r;
  v_done := procjobs.revive(
    procjobs.take_dead_letters(format('j.status = ''failed'' and j.id = any (%L::bigint[])', v_ids), max_jobs), null);
  insert into procjobs.job_events (job_id, at, type, actor, detail)
  select d.id, procjobs.clock(), 'redriven', session_user, jsonb_build_object('round', d.round)
  from unnest(v_ids, v_rounds) as d(id, round)
  where d.id = any (v_done);
  if cardinality(v_done) > 0 then
    perform procjobs.note_retention('redrive', cardinality(v_done), '{"by": "retry_failed_jobs"}');
  end if;
  return cardinality(v_done);
end
$$;
comment on function procjobs.retry_failed_jobs(integer) is
  'Runs dead letters again whose error passes by itself, by the rules of procjobs.retry_rules: at most max_jobs, each a few rounds and never for ever. '
  'Returns how many. Definer: the worker and admin roles have no rights on tables.';
