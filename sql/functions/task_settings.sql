-- Settings of tasks: what somebody set over what the code says, effective at once, and pauses.
-- Owns:        procjobs.task_settings; pj_waits_for = 'pause' of waiting jobs, which the claim sets and this file clears.
-- Lock order:  task_settings (one row), then procrastinate_jobs by id, skipping locked rows.
-- The view procjobs.task_policies merges both; nothing else does.

create or replace function procjobs.task_policy(p_task text)
returns table (
  queue text, priority integer, max_attempts integer, backoff_base interval, backoff_cap interval, backoff_jitter boolean,
  timeout interval
)
language sql
stable
rows 1
set search_path = pg_catalog, pg_temp
as $$
  select p.queue, p.priority, p.max_attempts, p.backoff_base, p.backoff_cap, p.backoff_jitter, p.timeout
  from procjobs.task_policies p
  where p.task = p_task
$$;
comment on function procjobs.task_policy(text) is
  'How jobs of one task are treated now: its settings over what its code says (procjobs.task_policies). No row for a task that is not registered.';

create or replace function procjobs.task_timeouts()
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- plpgsql keeps the plan; before PostgreSQL 18 a function in SQL makes it anew for each claim.
  return (
    select jsonb_object_agg(p.task, p.timeout)
    from procjobs.task_policies p
    where p.timeout is not null
  );
end
$$;
comment on function procjobs.task_timeouts() is 'The tasks that have a timeout, with it: {"task": "00:00:30"}. Null: none has.';

create or replace function procjobs.paused_tasks()
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(task::text), '{}')
  from procjobs.task_settings
  where paused_at is not null
$$;
comment on function procjobs.paused_tasks() is 'Names of the tasks whose jobs are not claimed now.';

create or replace function procjobs.timeout_fault(p_timeout interval)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when p_timeout <= interval '0' or p_timeout > interval '10 years' then jsonb_build_object(
    'code', 'PJ009', 'message', format('a timeout cannot be %s', p_timeout),
    'detail', 'it is how long one run may take: more than nothing, at most 10 years',
    'hint', 'Leave it out for a run that may take as long as it likes.') end
$$;
comment on function procjobs.timeout_fault(interval) is 'What is wrong with a timeout, as a value for raise_fault; null if nothing is.';

create or replace function procjobs.setting_fault(
  p_queue text, p_max_attempts integer, p_base interval, p_cap interval, p_timeout interval
)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    case
      when length(p_queue) not between 1 and 128 then jsonb_build_object(
        'code', 'PJ010', 'message', 'a queue needs a name of 1 to 128 characters',
        'detail', format('the name has %s', length(p_queue)),
        'hint', 'Leave queue out to keep the one it has.')
      when p_max_attempts < 1 then jsonb_build_object(
        'code', 'PJ009', 'message', format('max_attempts cannot be %s', p_max_attempts),
        'detail', 'it counts all runs, the first included',
        'hint', 'Use 1 for jobs that are never retried.')
      when p_base < interval '0' or p_cap < p_base or p_cap > interval '10 years' then jsonb_build_object(
        'code', 'PJ009', 'message', format('a retry cannot wait from %s up to %s', p_base, p_cap),
        'detail', 'backoff_base is at least 0 and at most backoff_cap, which is at most 10 years',
        'hint', 'Give both, e.g. backoff_base => ''10 s'', backoff_cap => ''1 h''.')
    end,
    procjobs.timeout_fault(p_timeout))
$$;
comment on function procjobs.setting_fault(text, integer, interval, interval, interval) is
  'What is wrong with the settings of a task, as a value for raise_fault; null if nothing is.';

create or replace function procjobs.require_task(p_task text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from procjobs.tasks t where t.name = p_task) then
    perform procjobs.raise_fault(procjobs.unknown_task_fault(p_task));
  end if;
end
$$;
comment on function procjobs.require_task(text) is 'Raises PJ001 for a name that is no task''s.';

drop function if exists procjobs.set_task(text, text, integer, integer, interval, interval, boolean, interval);
create or replace function procjobs.set_task(
  task text,
  queue text default null,
  priority integer default null,
  max_attempts integer default null,
  backoff_base interval default null,
  backoff_cap interval default null,
  backoff_jitter boolean default null,
  timeout interval default null,
  reason text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_policy record;
  v_why text := procjobs.give_reason(set_task.reason);
  v_changed boolean;
begin
  perform procjobs.require_task(set_task.task);
  select p.* into v_policy from procjobs.task_policy(set_task.task) p;
  perform procjobs.raise_fault(procjobs.setting_fault(
    set_task.queue, set_task.max_attempts,
    coalesce(set_task.backoff_base, v_policy.backoff_base, interval '10 seconds'),
    coalesce(set_task.backoff_cap, v_policy.backoff_cap, interval '1 hour'), set_task.timeout));

  insert into procjobs.task_settings as s (
    task, queue, priority, max_attempts, backoff_base, backoff_cap, backoff_jitter, timeout, set_at, set_by
  )
  values (
    set_task.task, set_task.queue, set_task.priority, set_task.max_attempts, set_task.backoff_base, set_task.backoff_cap,
    set_task.backoff_jitter, set_task.timeout, procjobs.clock(), session_user
  )
  on conflict (task) do update
  set queue = coalesce(excluded.queue, s.queue),
      priority = coalesce(excluded.priority, s.priority),
      max_attempts = coalesce(excluded.max_attempts, s.max_attempts),
      backoff_base = coalesce(excluded.backoff_base, s.backoff_base),
      backoff_cap = coalesce(excluded.backoff_cap, s.backoff_cap),
      backoff_jitter = coalesce(excluded.backoff_jitter, s.backoff_jitter),
      timeout = coalesce(excluded.timeout, s.timeout),
      set_at = excluded.set_at,
      set_by = excluded.set_by
  where (
      coalesce(excluded.queue, s.queue), coalesce(excluded.priority, s.priority), coalesce(excluded.max_attempts, s.max_attempts),
      coalesce(excluded.backoff_base, s.backoff_base), coalesce(excluded.backoff_cap, s.backoff_cap),
      coalesce(excluded.backoff_jitter, s.backoff_jitter), coalesce(excluded.timeout, s.timeout)
    ) is distinct from (s.queue, s.priority, s.max_attempts, s.backoff_base, s.backoff_cap, s.backoff_jitter, s.timeout);
  v_changed := found;
  perform procjobs.give_reason(v_why);
  return v_changed;
end
$$;
comment on function procjobs.set_task(text, text, integer, integer, interval, interval, boolean, interval, text) is
  'Sets how jobs of a task are treated, over what its code says, at once and without a restart: only what is given changes. '
  'queue and priority are for new jobs; max_attempts (runs in all), backoff_base, backoff_cap, backoff_jitter and timeout for every run from now on; the reason goes to procjobs.setting_log. '
  'Returns false if all was set so already. Unknown task: PJ001. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.reset_task(text);
create or replace function procjobs.reset_task(task text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_why text := procjobs.give_reason(reset_task.reason);
  v_found boolean;
begin
  update procjobs.task_settings s
  set queue = null,
      priority = null,
      max_attempts = null,
      backoff_base = null,
      backoff_cap = null,
      backoff_jitter = null,
      timeout = null,
      set_at = procjobs.clock(),
      set_by = session_user
  where s.task = reset_task.task
    and num_nonnulls(
      s.queue, s.priority::text, s.max_attempts::text, s.backoff_base::text, s.backoff_cap::text, s.backoff_jitter::text,
      s.timeout::text) > 0;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if v_found then
    return true;
  end if;
  perform procjobs.require_task(reset_task.task);
  return false;
end
$$;
comment on function procjobs.reset_task(text, text) is
  'Takes back what was set for a task: its code decides again; the reason goes to procjobs.setting_log. A pause stays. Returns false if nothing was set. '
  'Unknown task: PJ001. Definer: the admin role has no rights on tables.';

create or replace function procjobs.pause_task(task text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform procjobs.require_task(pause_task.task);
  insert into procjobs.task_settings as s (task, paused_at, paused_by, pause_reason)
  values (pause_task.task, procjobs.clock(), session_user, left(pause_task.reason, 1000))
  on conflict (task) do update
  set paused_at = excluded.paused_at,
      paused_by = excluded.paused_by,
      pause_reason = excluded.pause_reason
  where s.paused_at is null;
  return found;
end
$$;
comment on function procjobs.pause_task(text, text) is
  'Stops workers from claiming jobs of a task until resume_task; running jobs go on. Returns false if it was paused already '
  '(its first reason is kept). Unknown task: PJ001. Definer: the admin role has no rights on tables.';

drop function if exists procjobs.resume_task(text);
create or replace function procjobs.resume_task(task text, reason text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_why text := procjobs.give_reason(resume_task.reason);
  v_found boolean;
begin
  update procjobs.task_settings s
  set paused_at = null, paused_by = null, pause_reason = null
  where s.task = resume_task.task
    and s.paused_at is not null;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if not v_found then
    perform procjobs.require_task(resume_task.task);
    return false;
  end if;
  perform procjobs.resume_paused_jobs();
  return true;
end
$$;
comment on function procjobs.resume_task(text, text) is
  'Lets workers claim jobs of a paused task again, at once; of very many, upkeep lets go the rest. Returns false if it was not paused. '
  'Unknown task: PJ001. Definer: the admin role has no rights on tables.';

create or replace function procjobs.resume_paused_jobs(p_max_jobs integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_tasks text[];
  v_count integer;
  v_queues text[];
  v_locks text[];
begin
  -- A loose index scan: one probe a task, however many jobs it has.
  with recursive waiting(task) as (
    (
      select j.task_name
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'pause'
      order by j.task_name
      limit 1
    )
    union all
    select (
      select j.task_name
      from public.procrastinate_jobs j
      where j.status = 'todo'
        and j.pj_waits_for = 'pause'
        and j.task_name > waiting.task
      order by j.task_name
      limit 1
    )
    from waiting
    where waiting.task is not null
  )
  select array_agg(w.task::text) into v_tasks
  from waiting w
  where w.task is not null
    and w.task <> all (procjobs.paused_tasks());
  if v_tasks is null then
    return 0;
  end if;

  with held as (
    select j.id
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'pause'
      and j.task_name = any (v_tasks)
    limit p_max_jobs
    for update skip locked
  ),
  freed as (
    update public.procrastinate_jobs
    set pj_waits_for = case when lock is not null then 'lock' end
    where id = any (array(select id from held order by id))
    returning queue_name, lock
  )
  select count(*), array_agg(distinct queue_name::text), array_agg(distinct lock) filter (where lock is not null)
  into v_count, v_queues, v_locks
  from freed;

  perform procjobs.wake_queues(v_queues);
  if v_locks is not null then
    perform procjobs.promote_locks(v_locks);
  end if;
  return v_count;
end
$$;
comment on function procjobs.resume_paused_jobs(integer) is
  'Lets go jobs that were set aside while their task was paused, when it no longer is. Returns how many. Upkeep calls it.';

drop function if exists procjobs.list_tasks();
create or replace function procjobs.list_tasks()
returns table (
  task text, queue text, priority integer, max_attempts integer, backoff_base interval, backoff_cap interval,
  backoff_jitter boolean, timeout interval, registered jsonb, settings jsonb, set_at timestamptz, set_by text,
  paused_at timestamptz, paused_by text, pause_reason text, execution text, description text,
  routine text, run_as text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.task_policies p order by p.task
$$;
comment on function procjobs.list_tasks() is 'procjobs.task_policies by name.';
