-- Retention policies: how long jobs that ended are kept.
-- Owns:        procjobs.retention_policies.
-- Lock order:  retention_policies (one row), upkeep_state, retention_log.

drop function if exists procjobs.set_retention(interval, integer, text, text, text);
create or replace function procjobs.set_retention(
  max_age interval default null,
  keep_last integer default null,
  queue text default null,
  task text default null,
  state text default 'all',
  reason text default null
)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_max_age interval := max_age;
  v_keep_last integer := keep_last;
  v_queue text := queue;
  v_task text := task;
  v_state text := coalesce(state, 'all');
  v_why text := procjobs.give_reason(reason);
  v_text text;
begin
  perform procjobs.check_retention(v_max_age, v_keep_last, v_queue, v_task, v_state);
  insert into procjobs.retention_policies as p (queue, task, state, max_age, keep_last, set_at, set_by)
  values (v_queue, v_task, v_state, v_max_age, v_keep_last, procjobs.clock(), session_user)
  on conflict (coalesce(task, ''), coalesce(queue, ''), state) do update
    set max_age = excluded.max_age,
        keep_last = excluded.keep_last,
        built_in = false,
        set_at = excluded.set_at,
        set_by = excluded.set_by;

  perform procjobs.give_reason(v_why);
  v_text := procjobs.retention_in_words(v_queue, v_task, v_state, v_max_age, v_keep_last);
  perform procjobs.note_retention('set', 0, jsonb_build_object('policy', v_text));
  perform procjobs.restart_retention();
  return v_text;
end
$$;
comment on function procjobs.set_retention(interval, integer, text, text, text, text) is
  'Keeps jobs that ended for max_age, or the last keep_last of them, or as long as both hold; for ever where neither is given. '
  'For a task, a queue, or, without either, all others (each queue is counted for itself); for one final state or all (each counted for itself). '
  'The reason goes to procjobs.setting_log. Returns the policy in words. See procjobs.retention. Definer: the admin role has no rights on tables.';

create or replace function procjobs.check_retention(
  p_max_age interval, p_keep_last integer, p_queue text, p_task text, p_state text
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fault text := case
    when p_queue is not null and p_task is not null then 'queue and task are both given'
    when length(p_queue) not between 1 and 128 then format('queue has %s characters', length(p_queue))
    when length(p_task) not between 1 and 128 then format('task has %s characters', length(p_task))
    when p_state not in ('all', 'succeeded', 'failed', 'cancelled', 'aborted') then format('state is %L', p_state)
    when p_max_age < interval '0' then format('max_age is %s', p_max_age)
    when p_keep_last < 0 then format('keep_last is %s', p_keep_last)
  end;
begin
  if v_fault is not null then
    raise exception 'this cannot be a retention policy: %', v_fault
      using errcode = 'PJ009',
            detail = v_fault,
            hint = 'A queue or a task (1 to 128 characters) or neither; state succeeded, failed, cancelled, aborted or all; max_age and keep_last not negative.';
  end if;
end
$$;
comment on function procjobs.check_retention(interval, integer, text, text, text) is 'Raises PJ009 for a policy that cannot be.';

drop function if exists procjobs.drop_retention(text, text, text);
create or replace function procjobs.drop_retention(
  queue text default null, task text default null, state text default 'all', reason text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue text := queue;
  v_task text := task;
  v_state text := coalesce(state, 'all');
  v_why text := procjobs.give_reason(reason);
  v_found boolean;
begin
  if v_queue is null and v_task is null and v_state in ('all', 'failed') then
    update procjobs.retention_policies p
    set max_age = case when v_state = 'all' then interval '7 days' end,
        keep_last = null,
        built_in = true,
        set_at = procjobs.clock(),
        set_by = 'procjobs'
    where p.task is null
      and p.queue is null
      and p.state = v_state
      and not p.built_in;
  else
    delete from procjobs.retention_policies p
    where p.task is not distinct from v_task
      and p.queue is not distinct from v_queue
      and p.state = v_state;
  end if;
  v_found := found;
  perform procjobs.give_reason(v_why);
  if not v_found then
    return false;
  end if;

  perform procjobs.note_retention('drop', 0, jsonb_build_object(
    'policy', procjobs.retention_in_words(v_queue, v_task, v_state, null, null)));
  perform procjobs.restart_retention();
  return true;
end
$$;
comment on function procjobs.drop_retention(text, text, text, text) is
  'Takes a policy back: the next one that fits holds again. Without queue and task, what came with procjobs holds again. The reason goes to procjobs.setting_log. False if there was none. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.retention_scope(p_queue text, p_task text, p_state text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select format('%s, %s', coalesce('task ' || p_task, 'queue ' || p_queue, 'all others'), p_state)
$$;
comment on function procjobs.retention_scope(text, text, text) is 'What a policy is for, in words: its name in the log of settings.';

create or replace function procjobs.retention_in_words(
  p_queue text, p_task text, p_state text, p_max_age interval, p_keep_last integer
)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('%s: %s',
    procjobs.retention_scope(p_queue, p_task, p_state),
    coalesce(nullif(concat_ws(' and ', p_max_age::text, 'the last ' || p_keep_last), ''), 'for ever'))
$$;
comment on function procjobs.retention_in_words(text, text, text, interval, integer) is 'A policy in words.';

create or replace function procjobs.note_retention(
  p_what text, p_jobs bigint, p_detail jsonb, p_partitions text[] default null, p_took interval default null
)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into procjobs.retention_log (at, what, actor, jobs, partitions, took, detail)
  values (procjobs.clock(), p_what, session_user, p_jobs, p_partitions, p_took, jsonb_strip_nulls(p_detail))
$$;
comment on function procjobs.note_retention(text, bigint, jsonb, text[], interval) is 'Writes what was forgotten, and by whom.';

create or replace function procjobs.restart_retention()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from procjobs.retention_marks;
  delete from procjobs.upkeep_state
  where chore like 'retention:%';
  update procjobs.upkeep_state
  set ran_at = '-infinity'
  where chore = 'run_retention';
end
$$;
comment on function procjobs.restart_retention() is
  'Lets the next passes look at every job again: after a policy changed, and once a day for what was passed over (locked, or of a batch that had not finished).';

create or replace function procjobs.list_retention()
returns table (
  task text, queue text, state text, max_age interval, keep_last integer, built_in boolean, set_at timestamptz, set_by text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select r.task, r.queue, r.state, r.max_age, r.keep_last, r.built_in, r.set_at, r.set_by
  from procjobs.retention r
  order by r.task is null, r.task, r.queue is null, r.queue, r.state
$$;
comment on function procjobs.list_retention() is 'procjobs.retention, in the order in which policies are asked.';

create or replace function procjobs.list_retention_passes(p_max_rows integer default 50)
returns table (
  id bigint, at timestamptz, what text, actor text, jobs bigint, partitions text[], took interval, detail jsonb
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.retention_passes p order by p.id desc limit greatest(p_max_rows, 0)
$$;
comment on function procjobs.list_retention_passes(integer) is 'procjobs.retention_passes, newest first.';
