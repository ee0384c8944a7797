-- The ledger of effects: what tasks do outside the database is done once, or known to be in doubt; never silently twice.
-- Owns:        effects.
-- Lock order:  effects by key.

create or replace function procjobs.begin_effect(key text, job bigint default null)
returns table (decision text, provider_id text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_state text;
begin
  if coalesce(length(begin_effect.key), 0) not between 1 and 500 then
    raise exception 'an effect needs a key of 1 to 500 characters'
      using errcode = 'PJ009',
            detail = case when begin_effect.key is null then 'key is null' else format('key has %s characters', length(begin_effect.key)) end,
            hint = 'What is to be done only once, for example charge:4711: select * from procjobs.begin_effect(''charge:4711'');';
  end if;
  insert into procjobs.effects as e (key, state, job_id, began_at)
  values (begin_effect.key, 'intent', begin_effect.job, procjobs.clock())
  on conflict on constraint effects_pkey do nothing;
  if found then
    return query select 'do'::text, null::text;
    return;
  end if;
  -- Begun before. Whoever did may be at it still: that is not known either.
  update procjobs.effects e
  set state = 'unknown'
  where e.key = begin_effect.key
    and e.state = 'intent';
  select e.state, e.provider_id into v_state, begin_effect.provider_id from procjobs.effects e where e.key = begin_effect.key;
  decision := case v_state when 'done' then 'done' else 'unknown' end;
  return next;
end
$$;
comment on function procjobs.begin_effect(text, bigint) is
  'To be called, and committed, before something is done outside: do (it is yours to do), done (it was done; with what the other side calls it), or '
  'unknown (it was begun before and nobody knows: ask the other side, then procjobs.resolve_effect). PJ009: a key of no or over 500 characters. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.end_effect(key text, provider_id text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update procjobs.effects e
  set state = 'done', ended_at = procjobs.clock(), provider_id = end_effect.provider_id
  where e.key = end_effect.key
    and e.state <> 'done';
  return found;
end
$$;
comment on function procjobs.end_effect(text, text) is
  'It was done; provider_id: what the other side calls it. False: that was known, or it was never begun. Definer: the worker role has no rights on tables.';

create or replace function procjobs.void_effect(key text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from procjobs.effects e
  where e.key = void_effect.key
    and e.state = 'intent';
  return found;
end
$$;
comment on function procjobs.void_effect(text) is
  'What was begun surely did not happen: the next try may do it. False: it is done or unknown. Definer: the worker role has no rights on tables.';

create or replace function procjobs.resolve_effect(key text, outcome text, provider_id text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if outcome is null or outcome not in ('done', 'lost') then
    raise exception 'an effect cannot be resolved as %', quote_nullable(outcome)
      using errcode = 'PJ009', detail = format('effect %s', quote_nullable(resolve_effect.key)), hint = 'done: it happened; lost: it did not, and may be done again.';
  end if;
  if outcome = 'done' then
    update procjobs.effects e
    set state = 'done', ended_at = procjobs.clock(), provider_id = resolve_effect.provider_id, resolved_by = session_user
    where e.key = resolve_effect.key and e.state <> 'done';
  else
    delete from procjobs.effects e where e.key = resolve_effect.key and e.state <> 'done';
  end if;
  return found;
end
$$;
comment on function procjobs.resolve_effect(text, text, text) is
  'Says what became of an effect in doubt: done, or lost (the next try does it again). False: there is none of that key, or it was done. Definer: the admin role has no rights on tables.';

create or replace function procjobs.forget_effects(p_max_rows integer default 10000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.effects e
  where e.key in (
    select o.key from procjobs.effects o
    where o.state = 'done'
      and o.ended_at < procjobs.clock() - interval '90 days'
    order by o.ended_at
    limit p_max_rows
    for update skip locked
  );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_effects(integer) is
  'Forgets effects that were done more than 90 days ago; those in doubt stay. Returns how many.';
