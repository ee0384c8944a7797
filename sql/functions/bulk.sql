-- Actions on many jobs: cancel, retry or discard what a filter chooses, in bounded batches, counted first.
-- Owns:        procjobs.bulk_actions.
-- Lock order:  procrastinate_jobs by id, skipping locked rows; then as the called functions say.
-- A batch says where the next one goes on (last_id), so that a million jobs are looked at once.

create or replace function procjobs.filter_schema()
returns jsonb
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select '{
    "type": "object",
    "properties": {
      "queue": {"type": "string"},
      "task": {"type": "string"},
      "tag": {"type": "string"},
      "state": {"enum": ["waiting", "scheduled", "blocked", "parked", "limited", "paused", "todo", "running", "doing",
        "succeeded", "failed", "cancelled", "aborted"]},
      "error": {"type": "string"},
      "created_before": {"type": "string", "format": "date-time"},
      "created_after": {"type": "string", "format": "date-time"},
      "ids": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9223372036854775807}}
    },
    "additionalProperties": false
  }'::jsonb
$$;
comment on function procjobs.filter_schema() is 'What a filter of jobs looks like, as JSON Schema: every key narrows it.';

create or replace function procjobs.check_filter(p_filter jsonb)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := procjobs.schema_problems(procjobs.filter_schema(), p_filter);
begin
  if p_filter is null or v_problems <> '{}' then
    raise exception 'not a filter of jobs'
      using errcode = 'PJ009',
            detail = coalesce(array_to_string(v_problems, '; '), 'it is null'),
            hint = 'Its keys: ' || (
              select string_agg(k, ', ') from jsonb_object_keys(procjobs.filter_schema() -> 'properties') k
            ) || '.';
  elsif p_filter = '{}' then
    raise exception 'an empty filter chooses every job'
      using errcode = 'PJ009',
            detail = 'that is hardly ever meant',
            hint = 'Name at least a state: {"state": "todo"} is all that wait.';
  end if;
end
$$;
comment on function procjobs.check_filter(jsonb) is 'Raises PJ009 for what is not a filter of jobs, and for an empty one.';

create or replace function procjobs.state_condition(p_state text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_state is null then 'true'
    when p_state = 'waiting' then 'j.status = ''todo'' and j.waits_for is null'
    when p_state in ('scheduled', 'blocked', 'parked', 'limited', 'paused') then format(
      'j.status = ''todo'' and j.waits_for = %L',
      case p_state when 'scheduled' then 'time' when 'blocked' then 'lock' when 'parked' then 'task' when 'limited' then 'limit' else 'pause' end)
    when p_state = 'running' then 'j.status = ''doing'''
    else format('j.status = %L', p_state)
  end
$$;
comment on function procjobs.state_condition(text) is 'A state of procjobs.jobs as a condition on chosen_jobs'' rows.';

create or replace function procjobs.chosen_jobs(p_filter jsonb, p_action text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- $1 is the filter. Values never become part of the text; only states do, which are checked words.
  select concat_ws(' ',
    'from (
       select id, queue_name, task_name, status, pj_waits_for as waits_for, pj_tags as tags, pj_created_at as created_at,
         abort_requested and pj_cancel ->> ''timeout'' is distinct from ''true'' as asked
       from public.procrastinate_jobs',
    case when p_action = 'retry' and p_filter ->> 'state' in ('succeeded', 'cancelled', 'aborted') then '
       union all
       select id, queue_name, task_name, status, null, tags, created_at, false
       from procjobs.job_history' end,
    ') j where',
    case p_action
      when 'cancel' then '(j.status = ''todo'' or j.status = ''doing'' and not j.asked)'
      when 'discard' then 'j.status in (''todo'', ''failed'')'
      else case when p_filter ? 'state' then 'j.status <> ''doing''' else 'j.status = ''failed''' end
    end,
    'and ' || procjobs.state_condition(p_filter ->> 'state'),
    case when p_filter ? 'queue' then 'and j.queue_name = $1 ->> ''queue''' end,
    case when p_filter ? 'task' then 'and j.task_name = $1 ->> ''task''' end,
    case when p_filter ? 'tag' then 'and $1 ->> ''tag'' = any (j.tags)' end,
    case when p_filter ? 'created_before' then 'and j.created_at < ($1 ->> ''created_before'')::timestamptz' end,
    case when p_filter ? 'created_after' then 'and j.created_at >= ($1 ->> ''created_after'')::timestamptz' end,
    case when p_filter ? 'ids' then 'and j.id = any (array(select i::bigint from jsonb_array_elements_text($1 -> ''ids'') i))' end,
    case when p_filter ? 'error' then 'and $1 ->> ''error'' = (
       select a.error_class from procjobs.job_attempts a
       where a.job_id = j.id and a.error_class is not null
       order by a.id desc limit 1)' end)
$$;
comment on function procjobs.chosen_jobs(jsonb, text) is
  'The jobs that a filter chooses for an action (cancel: waiting and running; retry: dead letters, or those in the state it names; '
  'discard: waiting and dead letters), as the text of a query from FROM on.';

create or replace function procjobs.act_on_jobs(p_action text, p_ids bigint[], p_reason text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
  v_count integer := 0;
begin
  if p_action = 'cancel' then
    return procjobs.cancel_waiting_and_running(p_ids, p_reason);
  elsif p_action = 'discard' then
    insert into procjobs.job_events (job_id, at, type, actor, detail)
    select i, procjobs.clock(), 'discarded', session_user, jsonb_strip_nulls(jsonb_build_object('reason', p_reason))
    from unnest(p_ids) i;
    return procjobs.archive_jobs(p_ids, null, coalesce('discarded: ' || p_reason, 'discarded by ' || session_user));
  end if;

  foreach v_id in array p_ids loop
    begin
      v_count := v_count + procjobs.retry(v_id)::integer;
    exception
      when sqlstate 'PJ006' or sqlstate 'PJ007' or sqlstate 'PJ008' then
        null;  -- another job does its work, or somebody was faster
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.act_on_jobs(text, bigint[], text) is 'Does one batch of a bulk action. Returns to how many jobs it was done.';

create or replace function procjobs.cancel_waiting_and_running(p_ids bigint[], p_reason text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_cancel jsonb := jsonb_strip_nulls(jsonb_build_object('by', session_user, 'at', v_now, 'reason', p_reason));
  v_waiting bigint[];
  v_running bigint[];
begin
  with asked as (
    update public.procrastinate_jobs j
    set pj_cancel = v_cancel,
        abort_requested = j.status = 'doing'
    where j.id = any (p_ids)
    returning j.id, j.status
  ),
  noted as (
    insert into procjobs.job_events (job_id, at, type, actor, detail)
    select
      a.id, v_now, case when a.status = 'doing' then 'cancel_requested' else 'cancelled' end, session_user,
      jsonb_strip_nulls(jsonb_build_object('reason', p_reason))
    from asked a
  )
  select array_agg(a.id) filter (where a.status <> 'doing'), array_agg(a.id) filter (where a.status = 'doing')
  into v_waiting, v_running
  from asked a;

  if v_waiting is not null then
    perform procjobs.archive_jobs(v_waiting, 'cancelled', coalesce(p_reason, 'cancelled by ' || session_user));
  end if;
  return coalesce(cardinality(v_waiting), 0) + coalesce(cardinality(v_running), 0);
end
$$;
comment on function procjobs.cancel_waiting_and_running(bigint[], text) is
  'Cancels these waiting jobs and asks the running ones to stop, which the caller has locked. Returns how many.';

create or replace function procjobs.bulk_action(
  p_action text, p_filter jsonb, p_reason text, p_dry_run boolean, p_max_jobs integer, p_after_id bigint
)
returns table (jobs bigint, last_id bigint, sample bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_began timestamptz := procjobs.wall_clock();
  v_from text;
  v_ids bigint[];
begin
  perform procjobs.check_filter(p_filter);
  if coalesce(p_max_jobs, 0) not between 1 and 10000 then
    raise exception 'a batch cannot have % jobs', coalesce(p_max_jobs::text, 'null')
      using errcode = 'PJ009',
            detail = 'max_jobs lies between 1 and 10000',
            hint = 'Call it again with after_id => last_id for the next batch.';
  end if;
  v_from := procjobs.chosen_jobs(p_filter, p_action);
  if p_dry_run then
    execute format('select count(*), null::bigint, (array_agg(j.id order by j.id))[1:10] %s and j.id > $2', v_from)
    into jobs, last_id, sample
    using p_filter, coalesce(p_after_id, 0);
    sample := coalesce(sample, '{}');
    return next;
    return;
  end if;

  execute format(
    'select coalesce(array_agg(c.id), ''{}'') from (select j.id %s and j.id > $2 order by j.id limit $3 %s) c', v_from,
    case when v_from !~ 'procjobs\.job_history' then 'for update skip locked' end)
  into v_ids
  using p_filter, coalesce(p_after_id, 0), p_max_jobs;
  jobs := procjobs.act_on_jobs(p_action, v_ids, left(p_reason, 1000));
  last_id := v_ids[cardinality(v_ids)];
  sample := v_ids[1:10];
  if jobs > 0 then
    insert into procjobs.bulk_actions (action, filter, reason, started_at, ended_at, jobs)
    values (p_action, p_filter, left(p_reason, 1000), v_began, procjobs.wall_clock(), bulk_action.jobs);
  end if;
  return next;
end
$$;
comment on function procjobs.bulk_action(text, jsonb, text, boolean, integer, bigint) is
  'One batch of an action on the jobs that a filter chooses, or with p_dry_run their count.';

create or replace function procjobs.cancel_jobs(
  filter jsonb, reason text default null, dry_run boolean default true, max_jobs integer default 1000, after_id bigint default 0
)
returns table (jobs bigint, last_id bigint, sample bigint[])
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.bulk_action('cancel', filter, reason, dry_run, max_jobs, after_id)
$$;
comment on function procjobs.cancel_jobs(jsonb, text, boolean, integer, bigint) is
  'Cancels the waiting and running jobs that a filter chooses: {"queue", "task", "tag", "state", "error", "created_before", "created_after", "ids"}. '
  'By default only counts them and shows ten ids; with dry_run => false one batch of max_jobs is done: call it again with after_id => last_id until that is null. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.retry_jobs(
  filter jsonb, dry_run boolean default true, max_jobs integer default 1000, after_id bigint default 0
)
returns table (jobs bigint, last_id bigint, sample bigint[])
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.bulk_action('retry', filter, null, dry_run, max_jobs, after_id)
$$;
comment on function procjobs.retry_jobs(jsonb, boolean, integer, bigint) is
  'Lets the dead letters that a filter chooses run again; with a "state" in the filter, jobs in that state instead (scheduled, cancelled, aborted, succeeded). '
  'What another job stands in for is passed over. Counts by default, goes on by last_id: see cancel_jobs. Definer: the admin role has no rights on tables.';

create or replace function procjobs.discard_jobs(
  filter jsonb, reason text default null, dry_run boolean default true, max_jobs integer default 1000, after_id bigint default 0
)
returns table (jobs bigint, last_id bigint, sample bigint[])
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.bulk_action('discard', filter, reason, dry_run, max_jobs, after_id)
$$;
comment on function procjobs.discard_jobs(jsonb, text, boolean, integer, bigint) is
  'Moves the dead letters and waiting jobs that a filter chooses to the history: nobody needs to look at them any more. '
  'Counts by default, goes on by last_id: see cancel_jobs. Definer: the admin role has no rights on tables.';
