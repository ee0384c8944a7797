-- The history: its daily partitions.
-- Owns:        the partitions of job_history.
-- Lock order:  job_history, then its partitions, each for less than lock_timeout; who cannot have them comes again.

create or replace function procjobs.ensure_history_partition(p_day date)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
as $$
declare
  v_name text := 'job_history_' || to_char(p_day, 'YYYYMMDD');
  v_from timestamptz := p_day::timestamp at time zone 'UTC';
  v_to timestamptz := (p_day + 1)::timestamp at time zone 'UTC';
begin
  if to_regclass('procjobs.' || v_name) is not null then
    return false;
  end if;

  -- A day that has come: jobs may be on their way into the default partition, and would be refused there. They end first,
  -- the next ones wait. Days that lie ahead, the usual case, have none.
  if v_from <= procjobs.clock() then
    lock table procjobs.job_history in share row exclusive mode;
  end if;

  -- Rows of that day that came before their partition move over before it is attached.
  execute format('create table procjobs.%I (like procjobs.job_history including defaults including constraints)', v_name);
  lock table procjobs.job_history_default in access exclusive mode;
  execute format(
    'with moved as (
       delete from procjobs.job_history_default
       where finished_at >= $1 and finished_at < $2
       returning *
     )
     insert into procjobs.%I select * from moved', v_name
  ) using v_from, v_to;
  execute format(
    'alter table procjobs.job_history attach partition procjobs.%I for values from (%L) to (%L)', v_name, v_from, v_to
  );
  -- Whoever made it, the owner must be able to read and to drop it.
  execute format('alter table procjobs.%I owner to %I', v_name, (
    select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'procjobs.job_history'::regclass));
  execute format('comment on table procjobs.%I is %L', v_name, 'Jobs that ended on ' || p_day || ' (UTC).');
  return true;
end
$$;
comment on function procjobs.ensure_history_partition(date) is
  'Creates the history partition of one day (UTC), if it is missing, and moves into it what the default partition caught.';

create or replace function procjobs.ensure_history_partitions(p_days_ahead integer default 7)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_today date := (procjobs.clock() at time zone 'UTC')::date;
  v_count integer := 0;
begin
  for v_ahead in 0 .. p_days_ahead loop
    begin
      v_count := v_count + procjobs.ensure_history_partition(v_today + v_ahead)::integer;
    exception
      when lock_not_available or duplicate_table or unique_violation then
        -- Somebody reads the default partition for long, or creates the same one: the next pass is soon.
        raise notice 'history partition of % not created yet: %', v_today + v_ahead, sqlerrm;
        exit;
    end;
  end loop;
  return v_count;
end
$$;
comment on function procjobs.ensure_history_partitions(integer) is
  'Creates the history partitions of today and the coming days. Returns how many were new. '
  'Definer: only the owner creates tables.';

create or replace function procjobs.retained_by(p_partition text, p_until timestamptz)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_rule record;
  v_found boolean;
begin
  for v_rule in
    select r.id, r.state, procjobs.retention_in_words(r.queue, r.task, r.state, r.max_age, r.keep_last) as words
    from procjobs.retention r
    where r.max_age is null
      or p_until > procjobs.clock() - r.max_age
    order by r.task is null, r.queue is null, r.state
  loop
    execute format(
      'select exists (select from procjobs.%I j where %s%s)', p_partition,
      procjobs.retention_condition(v_rule.id, v_rule.state, null),
      case when v_rule.state <> 'succeeded' then ' and j.status <> ''succeeded''' end  -- the predicate of an index
    ) into v_found;
    if v_found then
      return v_rule.words;
    end if;
  end loop;

  execute format(
    'select exists (
       select from procjobs.%I j
       join procjobs.job_batches b on b.id = j.batch
       where j.batch is not null and b.finished_at is null
     )', p_partition
  ) into v_found;
  return case when v_found then 'a batch that has not finished' end;
end
$$;
comment on function procjobs.retained_by(text, timestamptz) is
  'The first policy, in words, that keeps a job of a partition whose day ends at p_until; null: all may go.';

create or replace function procjobs.drop_old_partition(out day text, out jobs bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
declare
  v_name text;
  v_until timestamptz;
  v_oid oid;
begin
  for v_name, v_oid, v_until in
    select c.relname, c.oid, (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp at time zone 'UTC'
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'procjobs.job_history'::regclass
      and c.relname ~ '^job_history_[0-9]{8}$'
    order by c.relname
  loop
    -- The policies of all others say what becomes of jobs that no other policy is for.
    exit when v_until > procjobs.clock() - (select min(r.max_age) from procjobs.retention r)
      or not exists (select from procjobs.retention_policies p where p.state = 'all' and p.task is null and p.queue is null);
    continue when not procjobs.chore_is_due('retention:drop ' || v_name, interval '10 minutes');
    continue when procjobs.retained_by(v_name, v_until) is not null;

    if pg_relation_size(v_oid) < 100000000 then
      execute format('select count(*) from procjobs.%I', v_name) into jobs;
    else
      jobs := (select greatest(c.reltuples, 0)::bigint from pg_class c where c.oid = v_oid);
    end if;
    begin
      execute format('drop table procjobs.%I', v_name);
      day := to_char(to_date(right(v_name, 8), 'YYYYMMDD'), 'YYYY-MM-DD');
      perform procjobs.look_for_orphans(v_until);
      return;
    exception
      when lock_not_available then
        -- Somebody reads the history for long; finishing jobs must not wait behind us.
        raise notice '% not dropped yet: %', v_name, sqlerrm;
        jobs := null;
        return;
    end;
  end loop;
end
$$;
comment on function procjobs.drop_old_partition() is
  'Drops the oldest day of the history whose jobs may all go, if there is one and nobody reads the history for long. Null: none was dropped.';
