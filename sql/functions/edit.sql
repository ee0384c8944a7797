-- Editing: a job that waits gets other arguments or options.
-- Owns:        job_events of type edited.
-- Lock order:  procrastinate_jobs (one job), then the next jobs of its old and its new lock.

create or replace function procjobs.raise_not_waiting(p_job_id bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text := (select j.status::text from public.procrastinate_jobs j where j.id = p_job_id);
begin
  if v_status is null then
    v_status := (select h.status::text from procjobs.job_history h where h.id = p_job_id order by h.finished_at desc limit 1);
  end if;
  if v_status is null then
    perform procjobs.raise_job_not_found(p_job_id);
  end if;
  raise exception 'job % does not wait', p_job_id
    using errcode = 'PJ008',
          detail = case v_status when 'doing' then 'it is running' else format('it is over: %s', v_status) end,
          hint = case v_status
            when 'doing' then format('select procjobs.cancel(%s), and enqueue another.', p_job_id)
            else format('select procjobs.retry(%s) makes it wait again; enqueue another for other arguments.', p_job_id)
          end;
end
$$;
comment on function procjobs.raise_not_waiting(bigint) is 'Raises why a job cannot be changed: PJ007 there is none, PJ008 it runs or is over.';

create or replace function procjobs.edit_detail(p_before public.procrastinate_jobs, p_after public.procrastinate_jobs)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Arguments apart from the rest: the view procjobs.actions keeps them from readers.
  select jsonb_strip_nulls(jsonb_build_object(
    'before', jsonb_object_agg(regexp_replace(b.key, '^pj_', ''), b.value) filter (where b.key <> 'args'),
    'after', jsonb_object_agg(regexp_replace(b.key, '^pj_', ''), a.value) filter (where b.key <> 'args')
  )) || coalesce(jsonb_object_agg('args_before', b.value) filter (where b.key = 'args'), '{}')
    || coalesce(jsonb_object_agg('args_after', a.value) filter (where b.key = 'args'), '{}')
  from jsonb_each(to_jsonb(p_before)) b
  join jsonb_each(to_jsonb(p_after)) a on a.key = b.key
  where a.value <> b.value
    and b.key <> 'pj_waits_for'
$$;
comment on function procjobs.edit_detail(public.procrastinate_jobs, public.procrastinate_jobs) is
  'What an edit changed: {"before": {...}, "after": {...}, "args_before", "args_after"}.';

create or replace function procjobs.edit_job(
  job_id bigint,
  args jsonb default null,
  priority integer default null,
  queue text default null,
  scheduled_at timestamptz default null,
  lock text default null,
  queueing_lock text default null,
  max_attempts integer default null,
  tags text[] default null,
  timeout interval default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_job public.procrastinate_jobs;
  v_new public.procrastinate_jobs;
  v_detail jsonb;
begin
  -- Waits for a claim that is under way, and then sees what it did.
  select j.* into v_job from public.procrastinate_jobs j where j.id = edit_job.job_id for update;
  if v_job.status is distinct from 'todo' then
    perform procjobs.raise_not_waiting(edit_job.job_id);
  end if;
  perform procjobs.raise_fault(coalesce(
    procjobs.option_fault(
      coalesce(edit_job.queue, v_job.queue_name), edit_job.scheduled_at, array[edit_job.lock, edit_job.queueing_lock],
      edit_job.max_attempts, edit_job.tags),
    procjobs.timeout_fault(edit_job.timeout),
    case when edit_job.args is not null then procjobs.argument_fault(
      v_job.task_name, (select t.args_schema from procjobs.tasks t where t.name = v_job.task_name), edit_job.args) end));

  perform set_config('procjobs.args_checked', 'on', true);
  update public.procrastinate_jobs j
  set args = coalesce(edit_job.args, j.args),
      priority = coalesce(edit_job.priority, j.priority),
      queue_name = coalesce(edit_job.queue, j.queue_name),
      scheduled_at = coalesce(edit_job.scheduled_at, j.scheduled_at),
      lock = nullif(coalesce(edit_job.lock, j.lock), ''),
      queueing_lock = nullif(coalesce(edit_job.queueing_lock, j.queueing_lock), ''),
      pj_max_attempts = coalesce(edit_job.max_attempts, j.pj_max_attempts),
      pj_tags = nullif(coalesce(edit_job.tags, j.pj_tags), '{}'),
      pj_timeout = coalesce(edit_job.timeout, j.pj_timeout),
      -- The next claim judges it anew: another queue or priority may have other limits and neighbours.
      pj_waits_for = case when j.pj_waits_for = 'time' then 'time' when j.lock is not null then 'lock' end
  where j.id = v_job.id
  returning j.* into v_new;
  perform set_config('procjobs.args_checked', '', true);

  v_detail := procjobs.edit_detail(v_job, v_new);
  if v_detail = '{}' then
    return false;
  end if;
  perform procjobs.note_action(v_job.id, 'edited', v_detail);
  perform procjobs.promote_locks(array[v_job.lock, v_new.lock]);
  perform procjobs.wake_queues(array[v_new.queue_name::text]);
  return true;
exception
  when unique_violation then
    perform procjobs.raise_fault(procjobs.waiting_job_fault(edit_job.queueing_lock));
    raise;
end
$$;
comment on function procjobs.edit_job(bigint, jsonb, integer, text, timestamptz, text, text, integer, text[], interval) is
  'Changes a job that waits: only what is given changes; '''' takes a lock away, ''{}'' the tags; scheduled_at => now() makes it due. '
  'args takes the place of all arguments, and must fit the task (PJ002 to PJ005). Returns false if nothing was different. What was and what is goes to procjobs.actions. '
  'A job that runs or is over: PJ008. Unknown: PJ007. A waiting job with the same queueing lock: PJ006. Definer: the admin role has no rights on tables.';
