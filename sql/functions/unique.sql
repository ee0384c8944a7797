-- Unique keys: when two jobs are the same, and for how long.
-- Owns:        procjobs.unique_keys; procrastinate_jobs.pj_unique_key and pj_waiting_key.
-- Lock order:  unique_keys in the order of the keys, before the new jobs; held until the caller's transaction ends, so that of
--              many callers with one key the first wins and the others learn its id.
-- A key of an unfinished or waiting job is a partial unique index of the job table. What outlives the job has a row here.

create or replace function procjobs.read_interval(p_text text)
returns interval
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case when p_text ~ '^-?[0-9.]+$' then make_interval(secs => p_text::double precision) else p_text::interval end;
exception
  when data_exception then
    return null;
end
$$;
comment on function procjobs.read_interval(text) is 'A span of time from seconds or from words as PostgreSQL reads them; null if it is neither.';

create or replace function procjobs.uniqueness_options(p_task text, p_uniqueness jsonb, p_args jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'unique_key', format('unique:%s:%s', p_task, md5(coalesce(
      case when jsonb_typeof(p_uniqueness -> 'args') = 'array' then (
        select jsonb_object_agg(n, coalesce(p_args -> n, 'null'))
        from jsonb_array_elements_text(p_uniqueness -> 'args') n
      ) else p_args end, '{}')::text)),
    'unique_for', p_uniqueness -> 'period',
    'unique_while', p_uniqueness -> 'while'
  ))
$$;
comment on function procjobs.uniqueness_options(text, jsonb, jsonb) is
  'What a task''s own rule (tasks.uniqueness) makes of arguments: unique_key (the task and a hash of the chosen ones), unique_for and unique_while.';

create or replace function procjobs.job_of_key(p_key text, p_while text)
returns bigint
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select j.id
  from public.procrastinate_jobs j
  where j.pj_unique_key = p_key
    and j.status in ('todo', 'doing')
    and p_while is distinct from 'waiting'
  union all
  select j.id
  from public.procrastinate_jobs j
  where j.pj_waiting_key = p_key
    and j.status = 'todo'
    and p_while = 'waiting'
  limit 1
$$;
comment on function procjobs.job_of_key(text, text) is
  'The job that has the unique key among the unfinished ones (waiting: among those waiting). Volatile: it must see what others commit meanwhile.';

create or replace function procjobs.key_stands(p_key procjobs.unique_keys)
returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_key.until > procjobs.clock(), false)
    or p_key.while_retained and (
      exists (select from public.procrastinate_jobs j where j.id = p_key.job_id)
      or exists (select from procjobs.job_history h where h.id = p_key.job_id)
    )
$$;
comment on function procjobs.key_stands(procjobs.unique_keys) is
  'Whether a lasting key still stands for its job. Volatile: it must see what others commit meanwhile.';

create or replace function procjobs.hold_key(p_key text, p_job_id bigint, p_for interval, p_retained boolean)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key procjobs.unique_keys;
begin
  loop
    -- Duplicates, which may be many, neither write nor lock.
    select k.* into v_key from procjobs.unique_keys k where k.key = p_key;
    if not found then
      -- Waits for whoever enqueues with the same key just now, and then sees what became of that.
      insert into procjobs.unique_keys (key, job_id, until, while_retained)
      values (p_key, p_job_id, procjobs.clock() + p_for, p_retained)
      on conflict do nothing;
    elsif procjobs.key_stands(v_key) then
      return v_key.job_id;
    else
      update procjobs.unique_keys k
      set job_id = p_job_id, until = procjobs.clock() + p_for, while_retained = p_retained
      where k.key = p_key
        and k.job_id = v_key.job_id;
    end if;
    if found then
      return p_job_id;
    end if;
  end loop;
end
$$;
comment on function procjobs.hold_key(text, bigint, interval, boolean) is
  'Makes a lasting key stand for a job to be inserted, or returns the job it stands for. Its row is locked until the transaction ends.';

create or replace function procjobs.sweep_unique_keys(p_max_keys integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_after text := (select s.position from procjobs.upkeep_state s where s.chore = 'unique_keys_position');
  v_keys text[];
  v_count integer;
begin
  v_keys := array(
    select k.key
    from procjobs.unique_keys k
    where k.key > coalesce(v_after, '')
    order by k.key
    limit p_max_keys
  );
  with lapsed as (
    select k.key
    from procjobs.unique_keys k
    where k.key = any (v_keys)
      and (k.until is null or k.until <= procjobs.clock())
      and not procjobs.key_stands(k)
    for update skip locked
  )
  delete from procjobs.unique_keys k
  using lapsed
  where k.key = lapsed.key;
  get diagnostics v_count = row_count;

  if v_after is not null or cardinality(v_keys) = p_max_keys then
    insert into procjobs.upkeep_state as s (chore, ran_at, position)
    values ('unique_keys_position', procjobs.clock(), case when cardinality(v_keys) = p_max_keys then v_keys[p_max_keys] end)
    on conflict (chore) do update
      set ran_at = excluded.ran_at, position = excluded.position;
  end if;
  return v_count;
end
$$;
comment on function procjobs.sweep_unique_keys(integer) is
  'Forgets lasting keys that stand for nothing any more, looking at p_max_keys a call and going on there the next time. Returns how many. A chore of upkeep.';

create or replace function procjobs.debounce(
  task text,
  key text,
  wait interval,
  args jsonb default '{}',
  max_wait interval default null,
  queue text default null,
  priority integer default null,
  lock text default null,
  tenant text default null
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_job jsonb := jsonb_build_object('task', debounce.task, 'args', coalesce(debounce.args, '{}')) || jsonb_strip_nulls(jsonb_build_object(
    'queue', debounce.queue, 'priority', debounce.priority, 'lock', debounce.lock, 'tenant', debounce.tenant));
  v_now timestamptz := procjobs.clock();
  v_id bigint;
  v_queue text;
  v_due timestamptz;
begin
  perform procjobs.raise_fault(procjobs.key_fault(debounce.key, 'wait', debounce.wait, debounce.max_wait));
  perform procjobs.raise_fault(procjobs.deferral_fault(v_job));
  perform set_config('procjobs.args_checked', 'on', true);
  insert into public.procrastinate_jobs as j (
    task_name, queue_name, priority, args, lock, pj_tenant, pj_waiting_key, pj_created_at, scheduled_at
  )
  select
    t.name, coalesce(debounce.queue, s.queue, t.queue), coalesce(debounce.priority, s.priority, t.priority), v_job -> 'args', coalesce(debounce.lock, t.lock),
    debounce.tenant, format('debounce:%s:%s', t.name, debounce.key), v_now, v_now + least(debounce.wait, debounce.max_wait)
  from procjobs.tasks t
  left join procjobs.task_settings s on s.task = t.name
  where t.name = debounce.task
  on conflict (pj_waiting_key) where pj_waiting_key is not null and status = 'todo' do update
    -- A job that waits for a retry begins anew: its arguments are new.
    set args = excluded.args,
        queue_name = excluded.queue_name,
        priority = excluded.priority,
        lock = excluded.lock,
        pj_tenant = excluded.pj_tenant,
        attempts = 0,
        pj_crashes = 0,
        pj_created_at = case when j.attempts + j.pj_crashes > 0 then excluded.pj_created_at else j.pj_created_at end,
        scheduled_at = greatest(v_now, least(
          v_now + debounce.wait,
          case when j.attempts + j.pj_crashes > 0 then excluded.pj_created_at else j.pj_created_at end + debounce.max_wait))
  returning j.id, j.queue_name, j.scheduled_at into v_id, v_queue, v_due;
  perform set_config('procjobs.args_checked', '', true);
  if v_due <= v_now then
    perform procjobs.wake_queues(array[v_queue]);
  end if;
  return v_id;
end
$$;
comment on function procjobs.debounce(text, text, interval, jsonb, interval, text, integer, text, text) is
  'Enqueues a job that runs once nobody has called this with its task and key for `wait`; each call puts it off and gives it the newest arguments, but not beyond max_wait after the first. '
  'A running job does not count: the next call makes a new one. Returns the job''s id. Definer: the producer role has no rights on tables.';

create or replace function procjobs.throttle(
  task text,
  key text,
  period interval,
  args jsonb default '{}',
  queue text default null,
  priority integer default null,
  lock text default null,
  tenant text default null
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_fault(procjobs.key_fault(throttle.key, 'period', throttle.period, null));
  return procjobs.defer(
    task => throttle.task, args => throttle.args, queue => throttle.queue, priority => throttle.priority, lock => throttle.lock,
    unique_key => format('throttle:%s:%s', throttle.task, throttle.key), unique_for => throttle.period, tenant => throttle.tenant
  );
end
$$;
comment on function procjobs.throttle(text, text, interval, jsonb, text, integer, text, text) is
  'Enqueues a job unless this was done with its task and key within the last `period` (or that job is still unfinished): then that job''s id is returned and nothing happens. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.key_fault(p_key text, p_name text, p_span interval, p_most interval)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when coalesce(octet_length(p_key), 0) not between 1 and 800 then jsonb_build_object(
      'code', 'PJ009', 'message', 'key needs 1 to 800 bytes',
      'detail', format('it has %s', coalesce(octet_length(p_key), 0)), 'hint', 'Use a hash of it: md5(...).')
    when p_span is null or p_span <= interval '0' then jsonb_build_object(
      'code', 'PJ009', 'message', format('%s cannot be %s', p_name, coalesce(p_span::text, 'null')),
      'detail', 'it is a span of time', 'hint', 'As in interval ''5 minutes''.')
    when p_most < p_span then jsonb_build_object(
      'code', 'PJ009', 'message', format('max_wait cannot be %s', p_most),
      'detail', format('a single call waits %s already', p_span), 'hint', 'Leave it out, or make it longer than wait.')
  end
$$;
comment on function procjobs.key_fault(text, text, interval, interval) is
  'What is wrong with the key and the spans of debounce and throttle, as a value for raise_fault; null if nothing is.';
