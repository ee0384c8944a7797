-- Batches: jobs that belong together, and what is enqueued when they have all ended.
-- Owns:        procjobs.job_batches, procjobs.batch_ends.
-- Lock order:  after everything else, in the transaction's commit: an advisory lock for each batch, in the order of the ids.
-- A batch is over when it is sealed and none of its jobs waits or runs. Who ends jobs writes by how much the counts change
-- (batch_ends), without waiting for anybody; the deferred trigger judges at the commit. While some job still waits, whoever
-- ends others shares the lock; only when none does are the last ones judged one after the other. So the last to commit sees
-- all the others. A cancelled waiting job is judged alone, too. What a race leaves over, sweep_batches() finds.

create or replace function procjobs.lock_batch(p_batch bigint, p_alone boolean)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_alone then
    perform pg_advisory_xact_lock(hashtextextended('procjobs.batch', p_batch));
  else
    perform pg_advisory_xact_lock_shared(hashtextextended('procjobs.batch', p_batch));
  end if;
end
$$;
comment on function procjobs.lock_batch(bigint, boolean) is
  'Alone: to seal or judge a batch. Shared: to add jobs, or to end some that are not the last. Until the transaction ends.';

create or replace function procjobs.raise_batch_not_found(p_batch bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'there is no batch %', coalesce(p_batch::text, 'null')
    using errcode = 'PJ007',
          detail = 'no batch has this id, or it was forgotten',
          hint = 'select * from procjobs.batches order by id desc limit 20 lists the newest.';
end
$$;
comment on function procjobs.raise_batch_not_found(bigint) is 'Raises PJ007.';

create or replace function procjobs.callback_of(p_job jsonb, p_batch bigint)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_job -> 'args' -> 'batch_id' is null and exists (
      select
      from procjobs.tasks t
      where t.name = p_job ->> 'task'
        and t.args_schema -> 'properties' ? 'batch_id'
    ) then p_job || jsonb_build_object('args', coalesce(p_job -> 'args', '{}') || jsonb_build_object('batch_id', p_batch))
    else p_job
  end
$$;
comment on function procjobs.callback_of(jsonb, bigint) is 'A batch''s callback; a task that takes an argument batch_id is told the batch.';

create or replace function procjobs.create_batch(
  name text, on_finish jsonb default null, on_success jsonb default null, on_discard jsonb default null
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint := nextval(pg_get_serial_sequence('procjobs.job_batches', 'id'));
  v_callback text;
  v_jobs jsonb := jsonb_build_object('on_finish', on_finish, 'on_success', on_success, 'on_discard', on_discard);
  v_fault jsonb;
begin
  if coalesce(length(name), 0) not between 1 and 128 then
    raise exception 'a batch needs a name of 1 to 128 characters'
      using errcode = 'PJ010',
            detail = format('the name has %s', coalesce(length(name), 0)),
            hint = 'Several batches may have the same.';
  end if;
  foreach v_callback in array '{on_finish,on_success,on_discard}'::text[] loop
    continue when v_jobs -> v_callback = 'null';
    v_jobs := jsonb_set(v_jobs, array[v_callback], procjobs.callback_of(v_jobs -> v_callback, v_id));
    v_fault := procjobs.deferral_fault(v_jobs -> v_callback);
    perform procjobs.raise_fault(v_fault || jsonb_build_object('message', format('%s: %s', v_callback, v_fault ->> 'message')));
  end loop;

  insert into procjobs.job_batches (id, name, on_finish, on_success, on_discard, created_at)
  overriding system value
  values (
    v_id, create_batch.name, nullif(v_jobs -> 'on_finish', 'null'), nullif(v_jobs -> 'on_success', 'null'),
    nullif(v_jobs -> 'on_discard', 'null'), procjobs.clock()
  );
  return v_id;
end
$$;
comment on function procjobs.create_batch(text, jsonb, jsonb, jsonb) is
  'Opens a batch and returns its id. Jobs join with defer''s batch_id; seal_batch says that there are no more. '
  'Once all have ended, on_finish is enqueued, and on_success (all succeeded) or on_discard (some failed or were cancelled): each {"task", "args", ...} as in defer_many, at most once. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.join_batches(p_jobs jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch bigint;
  v_sealed timestamptz;
begin
  for v_batch in
    select distinct (j ->> 'batch_id')::numeric::bigint
    from jsonb_array_elements(p_jobs) j
    where j ->> 'batch_id' is not null
    order by 1
  loop
    perform procjobs.lock_batch(v_batch, false);
    select b.sealed_at into v_sealed from procjobs.job_batches b where b.id = v_batch;
    if not found then
      perform procjobs.raise_batch_not_found(v_batch);
    elsif v_sealed is not null then
      raise exception 'batch % is sealed', v_batch
        using errcode = 'PJ008',
              detail = format('since %s', procjobs.say_time(v_sealed)),
              hint = 'Add jobs before seal_batch, or open another batch.';
    end if;
  end loop;
end
$$;
comment on function procjobs.join_batches(jsonb) is
  'Makes sure that the batches of jobs to be inserted are there and open, and stay open until the transaction ends.';

create or replace function procjobs.seal_batch(batch_id bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Waits for transactions that are adding jobs.
  perform procjobs.lock_batch(batch_id, true);
  update procjobs.job_batches b
  set sealed_at = procjobs.clock()
  where b.id = batch_id
    and b.sealed_at is null;
  if found then
    perform procjobs.finish_batch(batch_id);
    return true;
  end if;
  if not exists (select from procjobs.job_batches b where b.id = batch_id) then
    perform procjobs.raise_batch_not_found(batch_id);
  end if;
  return false;
end
$$;
comment on function procjobs.seal_batch(bigint) is
  'Says that a batch has all its jobs: from now on it can finish, and does so at once if they have ended or there are none. False if it was sealed before. '
  'Waits for transactions that are adding jobs. Unknown: PJ007. Definer: the producer role has no rights on tables.';

create or replace function procjobs.finish_batch(p_batch bigint)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_batch procjobs.job_batches;
  v_jobs jsonb;
begin
  if exists (
    select
    from public.procrastinate_jobs j
    where j.pj_batch = p_batch
      and j.status in ('todo', 'doing')
  ) then
    return false;
  end if;
  perform procjobs.add_up_batch(p_batch);
  update procjobs.job_batches b
  set finished_at = procjobs.clock()
  where b.id = p_batch
    and b.sealed_at is not null
    and b.finished_at is null
  returning b.* into v_batch;
  if not found then
    return false;
  end if;

  v_jobs := jsonb_path_query_array(
    jsonb_build_array(
      v_batch.on_finish, case when v_batch.failed + v_batch.cancelled = 0 then v_batch.on_success else v_batch.on_discard end),
    '$[*] ? (@ != null)');
  begin
    update procjobs.job_batches b
    set callback_ids = array(select d.id from procjobs.defer_many(v_jobs) d order by d.ordinal),
        problem = null
    where b.id = p_batch
      and jsonb_array_length(v_jobs) > 0;
  exception
    when others then
      -- The end of the jobs must stand all the same. After what passes by itself (a conflict, somebody's lock, a full disk) the
      -- batch is not over: the sweep comes back to it.
      update procjobs.job_batches b
      set problem = sqlerrm,
          finished_at = case when sqlstate !~ '^(40|53|55|57|58)' then b.finished_at end
      where b.id = p_batch;
      raise warning 'the callbacks of batch % could not be enqueued: %', p_batch, sqlerrm;
  end;
  return true;
end
$$;
comment on function procjobs.finish_batch(bigint) is
  'Finishes a batch if it is sealed and none of its jobs waits or runs, and enqueues its callbacks. Only for who holds its lock alone.';

create or replace function procjobs.add_up_batch(p_batch bigint)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  with gone as (
    delete from procjobs.batch_ends e
    where e.batch = p_batch
    returning e.succeeded, e.failed, e.cancelled
  ),
  total as (
    select sum(g.succeeded) as succeeded, sum(g.failed) as failed, sum(g.cancelled) as cancelled
    from gone g
    having count(*) > 0
  )
  update procjobs.job_batches b
  set succeeded = b.succeeded + t.succeeded,
      failed = b.failed + t.failed,
      cancelled = b.cancelled + t.cancelled
  from total t
  where b.id = p_batch
$$;
comment on function procjobs.add_up_batch(bigint) is 'Moves what batch_ends holds for a batch into its counts.';

create or replace function procjobs.judge_batch(p_batch bigint, p_alone boolean)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_alone or not procjobs.batch_goes_on(p_batch) then
    perform procjobs.lock_batch(p_batch, true);
  elsif pg_try_advisory_xact_lock_shared(hashtextextended('procjobs.batch', p_batch)) then
    -- If the last waiting job was taken meanwhile, this is left to the sweep: two who both ask for more would deadlock.
    return;
  else
    perform procjobs.lock_batch(p_batch, true);
  end if;
  perform procjobs.finish_batch(p_batch);
end
$$;
comment on function procjobs.judge_batch(bigint, boolean) is
  'Decides whether a batch of which this transaction ended jobs is over.';

create or replace function procjobs.batch_goes_on(p_batch bigint)
returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select exists (select from procjobs.job_batches b where b.id = p_batch and (b.sealed_at is null or b.finished_at is not null))
    or exists (
      select
      from (
        select j.id
        from public.procrastinate_jobs j
        where j.pj_batch = p_batch
          and j.status = 'todo'
        order by j.id desc
        limit 1
      ) last
    )
$$;
comment on function procjobs.batch_goes_on(bigint) is
  'Whether a batch cannot be over now: it is open, or a job of it waits. Volatile: it must see what others commit meanwhile.';

create or replace function procjobs.judge_batches()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me xid8 := pg_current_xact_id();
  v_batch bigint;
  v_alone boolean;
begin
  -- Once a transaction: it is fired for each row.
  if current_setting('procjobs.batches_judged', true) = v_me::text then
    return null;
  end if;
  perform set_config('procjobs.batches_judged', v_me::text, true);
  for v_batch, v_alone in
    select e.batch, bool_or(e.cancelled <> 0 or e.failed < 0)
    from procjobs.batch_ends e
    where e.reached = v_me
    group by e.batch
    order by e.batch
  loop
    perform procjobs.judge_batch(v_batch, v_alone);
  end loop;
  return null;
end
$$;
comment on function procjobs.judge_batches() is
  'Trigger, at the commit: looks whether batches are over. Definer: whoever ends a job needs no rights on batches.';

create or replace function procjobs.count_left()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into procjobs.batch_ends (batch, succeeded, cancelled)
  select d.pj_batch, count(*) filter (where d.status = 'doing'), count(*) filter (where d.status = 'todo')
  from deleted d
  where d.pj_batch is not null
    and d.status in ('todo', 'doing')
  group by d.pj_batch;
  return null;
end
$$;
comment on function procjobs.count_left() is
  'Trigger: jobs of batches that left the job table. Running ones count as succeeded until count_archived says otherwise, waiting ones as cancelled. '
  'Definer: whoever may delete a job needs no rights on batches.';

create or replace function procjobs.count_archived()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into procjobs.batch_ends (batch, succeeded, cancelled)
  values (new.batch, -1, 1);
  return null;
end
$$;
comment on function procjobs.count_archived() is
  'Trigger: a run that was stopped or discarded was not a success. Definer: whoever ends a job needs no rights on batches.';

create or replace function procjobs.count_ended()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sign integer := case when new.status in ('todo', 'doing') then -1 else 1 end;
  v_status text := case when new.status in ('todo', 'doing') then old.status else new.status end;
begin
  insert into procjobs.batch_ends (batch, succeeded, failed, cancelled)
  values (
    new.pj_batch, case when v_status = 'succeeded' then v_sign else 0 end, case when v_status = 'failed' then v_sign else 0 end,
    case when v_status not in ('succeeded', 'failed') then v_sign else 0 end
  );
  return null;
end
$$;
comment on function procjobs.count_ended() is
  'Trigger: a job of a batch ended and stays in the job table, or waits again after it had. Definer: whoever ends a job needs no rights on batches.';

create or replace function procjobs.sweep_batches(p_max_batches integer default 1000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch bigint;
  v_count integer := 0;
begin
  for v_batch in
    select b.id
    from (
      select e.batch as id from procjobs.batch_ends e group by e.batch
      union
      select o.id from procjobs.job_batches o where o.finished_at is null and o.sealed_at is not null
    ) b
    order by b.id
    limit p_max_batches
  loop
    continue when not pg_try_advisory_xact_lock(hashtextextended('procjobs.batch', v_batch));
    perform procjobs.add_up_batch(v_batch);
    v_count := v_count + procjobs.finish_batch(v_batch)::integer;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.sweep_batches(integer) is
  'Adds up the counts of batches, and finishes those whose end a race left unseen. Returns how many it finished. A chore of upkeep.';

create or replace function procjobs.forget_batches(p_max_batches integer default 1000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_count integer;
begin
  delete from procjobs.job_batches
  where id = any (array(
    select b.id
    from procjobs.job_batches b
    where b.finished_at < procjobs.clock() - interval '7 days'
      and not exists (select from procjobs.job_history h where h.batch = b.id)
      and not exists (select from public.procrastinate_jobs j where j.pj_batch = b.id)
      and not exists (select from procjobs.batch_ends e where e.batch = b.id)
    order by b.id
    limit p_max_batches
    for update skip locked
  ));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_batches(integer) is
  'Deletes batches that finished more than seven days ago and whose jobs are all forgotten. Returns how many. A chore of upkeep.';
