-- Dead letters by their error: equal errors have one fingerprint, and are run again or deleted together.
-- Owns:        the step failed -> todo of many jobs at once, and deletes of dead letters; job_events of type redriven.
-- Lock order:  procrastinate_jobs by id, skipping locked rows; job_attempts, job_events, retention_log.

create or replace function procjobs.error_fingerprint(p_class text, p_message text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- In this order: what is quoted, UUIDs, paths, hexadecimal numbers, numbers, then white space. Long messages by their beginning.
  select left(encode(sha256(convert_to(concat_ws(E'\n', p_class,
    regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
      left(p_message, 2000),
      '"[^"]*"|''[^'']*''|`[^`]*`', '?', 'g'),
      '\m[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\M', '?', 'g'),
      '([A-Za-z]:)?([/\\][[:alnum:]_.~%+@-]+){2,}[/\\]?|(^|\s)/[[:alnum:]_.~%+@-]+', '?', 'g'),
      '\m0[xX][0-9a-fA-F]+\M', '?', 'g'),
      '\m(?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{8,}\M', '?', 'g'),
      '[-+]?[0-9]+([.,:][0-9]+)*', '?', 'g'),
      '\s+', ' ', 'g')
  ), 'UTF8')), 'hex'), 16)
  where p_class is not null
$$;
comment on function procjobs.error_fingerprint(text, text) is
  'Equal for errors of one class whose messages differ only in numbers, UUIDs, hexadecimal values, quoted texts and paths. Null without a class.';

create or replace function procjobs.last_fingerprint(p_job_id bigint)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select a.fingerprint
  from procjobs.job_attempts a
  where a.job_id = p_job_id
    and a.error_class is not null
  order by a.id desc
  limit 1
$$;
comment on function procjobs.last_fingerprint(bigint) is 'The fingerprint of a job''s last error.';

create or replace function procjobs.dead_letter_condition(
  p_fingerprint text, p_queue text, p_task text, p_error_class text, p_before timestamptz
)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(' and ',
    'j.status = ''failed''',
    case when p_fingerprint is not null then format('j.pj_fingerprint = %L', p_fingerprint) end,
    case when p_queue is not null then format('j.queue_name = %L', p_queue) end,
    case when p_task is not null then format('j.task_name = %L', p_task) end,
    case when p_before is not null then format('j.pj_finished_at < %L::timestamptz', p_before) end,
    case when p_error_class is not null then format(
      '(select a.error_class from procjobs.job_attempts a where a.job_id = j.id and a.error_class is not null '
      'order by a.id desc limit 1) = %L', p_error_class) end)
$$;
comment on function procjobs.dead_letter_condition(text, text, text, text, timestamptz) is
  'A filter of dead letters j as a condition; what is null is not asked for.';

create or replace function procjobs.count_dead_letters(p_condition text)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_count bigint;
begin
  execute format('select count(*) from public.procrastinate_jobs j where %s', p_condition) into v_count;
  return v_count;
end
$$;
comment on function procjobs.count_dead_letters(text) is 'How many dead letters a condition finds.';

create or replace function procjobs.take_dead_letters(p_condition text, p_max_jobs integer)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_ids bigint[];
begin
  execute format(
    'select array(select j.id from public.procrastinate_jobs j where %s order by j.id limit $1 for update skip locked)', p_condition
  ) into v_ids using p_max_jobs;
  return v_ids;
end
$$;
comment on function procjobs.take_dead_letters(text, integer) is 'The oldest dead letters of a condition, locked.';

create or replace function procjobs.redrive(
  fingerprint text default null,
  queue text default null,
  task text default null,
  error_class text default null,
  before timestamptz default null,
  max_jobs integer default 1000,
  per_second double precision default null,
  dry_run boolean default false,
  out matching bigint,
  out redriven integer,
  out refused integer
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_condition text := procjobs.dead_letter_condition(fingerprint, queue, task, error_class, before);
  v_filter jsonb := jsonb_strip_nulls(jsonb_build_object(
    'fingerprint', fingerprint, 'queue', queue, 'task', task, 'error_class', error_class, 'before', before, 'per_second', per_second));
  v_ids bigint[];
  v_done bigint[];
begin
  perform procjobs.check_bulk(max_jobs, per_second);
  matching := procjobs.count_dead_letters(v_condition);
  redriven := 0;
  refused := 0;
  if dry_run then
    return;
  end if;

  v_ids := procjobs.take_dead_letters(v_condition, max_jobs);
  v_done := procjobs.revive(v_ids, per_second);
  redriven := cardinality(v_done);
  refused := cardinality(v_ids) - redriven;
  insert into procjobs.job_events (job_id, at, type, actor, detail)
  select d.id, procjobs.clock(), 'redriven', session_user, v_filter
  from unnest(v_done) as d(id);
  perform procjobs.note_retention('redrive', redriven, v_filter || jsonb_build_object('matching', matching, 'refused', refused));
end
$$;
comment on function procjobs.redrive(text, text, text, text, timestamptz, integer, double precision, boolean) is
  'Runs dead letters again, the oldest first, with all their attempts: of a fingerprint (procjobs.dead_letter_groups), queue, task, error class, or that failed before a time; at most max_jobs, '
  'so many per_second (null: all now). dry_run: only counts. Returns how many there were, how many will run, and how many were refused '
  'because another job has their queueing lock or unique key. Definer: the admin role has no rights on tables.';

create or replace function procjobs.check_bulk(p_max_jobs integer, p_per_second double precision)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_max_jobs is null or p_max_jobs not between 1 and 100000 or not (p_per_second > 0 and p_per_second < 'infinity') then
    raise exception 'max_jobs or per_second is out of range'
      using errcode = 'PJ009',
            detail = format('max_jobs is %s, per_second is %s', coalesce(p_max_jobs::text, 'null'), coalesce(p_per_second::text, 'null')),
            hint = 'max_jobs is 1 to 100000; call it again for more. per_second is greater than 0.';
  end if;
end
$$;
comment on function procjobs.check_bulk(integer, double precision) is 'Raises PJ009 for an impossible bound or rate.';

create or replace function procjobs.revive(p_ids bigint[], p_per_second double precision)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := procjobs.clock();
  v_every interval := coalesce(make_interval(secs => 1 / p_per_second), '0');
  v_id bigint;
  v_done bigint[];
begin
  -- Those that can meet nobody, at once; those with a key one by one, as by hand.
  with numbered as (
    select i.id, i.n from unnest(p_ids) with ordinality as i(id, n)
  ),
  revived as (
    update public.procrastinate_jobs j
    set status = 'todo',
        scheduled_at = v_now + (i.n - 1) * v_every,
        abort_requested = false,
        attempts = 0,
        pj_crashes = 0,
        worker_id = null,
        pj_cancel = null,
        pj_finished_at = null
    from numbered i
    where j.id = i.id
      and j.queueing_lock is null
      and j.pj_unique_key is null
      and j.pj_waiting_key is null
    returning j.id, j.queue_name
  )
  select coalesce(array_agg(r.id), '{}') into v_done from revived r;

  for v_id in
    select i.id from unnest(p_ids) as i(id) where i.id <> all (v_done) order by 1
  loop
    begin
      perform procjobs.retry(v_id);
      update public.procrastinate_jobs
      set scheduled_at = v_now + (array_position(p_ids, v_id) - 1) * v_every
      where id = v_id
        and v_every > interval '0';
      v_done := v_done || v_id;
    exception
      when sqlstate 'PJ006' or sqlstate 'PJ008' or unique_violation then
        raise debug 'job % stays a dead letter: %', v_id, sqlerrm;
    end;
  end loop;

  perform procjobs.wake_queues(array(
    select distinct j.queue_name::text from public.procrastinate_jobs j where j.id = any (v_done) and j.pj_waits_for is null));
  return v_done;
end
$$;
comment on function procjobs.revive(bigint[], double precision) is
  'Makes dead letters wait again, so many a second. Returns those that do; the others are kept from it by another job''s lock or key.';

create or replace function procjobs.purge_dead_letters(
  fingerprint text default null,
  queue text default null,
  task text default null,
  error_class text default null,
  before timestamptz default null,
  max_jobs integer default 10000,
  dry_run boolean default true,
  out matching bigint,
  out purged integer
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_condition text := procjobs.dead_letter_condition(fingerprint, queue, task, error_class, before)
    || ' and (j.pj_batch is null or not exists (select from procjobs.job_batches b where b.id = j.pj_batch and b.finished_at is null))';
  v_ids bigint[];
begin
  perform procjobs.check_bulk(max_jobs, null);
  matching := procjobs.count_dead_letters(v_condition);
  purged := 0;
  if dry_run then
    return;
  end if;

  v_ids := procjobs.take_dead_letters(v_condition, max_jobs);
  delete from public.procrastinate_jobs j where j.id = any (v_ids);
  get diagnostics purged = row_count;
  perform procjobs.forget_traces(v_ids);
  perform procjobs.note_retention('purge', purged, jsonb_build_object('fingerprint', fingerprint, 'queue', queue,
    'task', task, 'error_class', error_class, 'before', before, 'matching', matching));
end
$$;
comment on function procjobs.purge_dead_letters(text, text, text, text, timestamptz, integer, boolean) is
  'Deletes dead letters, the oldest first, with their attempts: filtered as by redrive, at most max_jobs. Only counts them unless dry_run is false. '
  'Those of a batch that has not finished stay. Returns how many there were and how many were deleted. Definer: the admin role has no rights on tables.';

create or replace function procjobs.list_dead_groups(p_max_rows integer default 50)
returns table (
  fingerprint text, task text, error_class text, sample text, jobs bigint, queues text[],
  first_at timestamptz, last_at timestamptz, last_id bigint
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.dead_letter_groups g order by g.jobs desc, g.last_id desc limit greatest(p_max_rows, 0)
$$;
comment on function procjobs.list_dead_groups(integer) is 'procjobs.dead_letter_groups, the largest first.';

create or replace function procjobs.list_dead_letters(
  p_fingerprint text default null, p_queue text default null, p_task text default null,
  p_max_rows integer default 50, p_before_id bigint default null
)
returns table (
  id bigint, queue text, task text, attempts integer, crashes integer, created_at timestamptz, failed_at timestamptz,
  worker text, fingerprint text, error text
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute format(
    'select d.id, d.queue, d.task, d.attempts, d.crashes, d.created_at, d.failed_at, d.worker, d.fingerprint, d.error
     from procjobs.dead_letters d
     where true %s %s %s %s
     order by d.id desc
     limit greatest($5, 0)',
    case when p_fingerprint is not null then 'and d.fingerprint = $1' end,
    case when p_queue is not null then 'and d.queue = $2' end,
    case when p_task is not null then 'and d.task = $3' end,
    case when p_before_id is not null then 'and d.id < $4' end
  ) using p_fingerprint, p_queue, p_task, p_before_id, p_max_rows;
end
$$;
comment on function procjobs.list_dead_letters(text, text, text, integer, bigint) is
  'Dead letters, the newest first: of an error''s fingerprint, a queue, a task; p_before_id goes on where a page ended.';
