-- The log of settings: who changed what of queues, tasks and limits, from what to what, and why.
-- Owns:        setting_changes.
-- Lock order:  after the row that changed; rows are only added, so that nobody waits here.
-- Triggers write it, in the transaction of the change: what a DBA updates by hand is there too.

create or replace function procjobs.give_reason(p_reason text)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_was text := coalesce(current_setting('procjobs.reason', true), '');
begin
  if p_reason is not null then
    perform set_config('procjobs.reason', left(p_reason, 1000), true);
  end if;
  return v_was;
end
$$;
comment on function procjobs.give_reason(text) is
  'Says for the rest of the transaction why settings are changed (null: as it is). Returns what was said before, to be given back.';

create or replace function procjobs.note_setting_change()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- What the engine keeps in these rows, and what the log says itself.
  v_apart constant text[] := '{set_at,set_by,paused_by,breaker,last_tenant,nobody_priority,nobody_id,look_priority,look_id}';
  v_key constant text := tg_argv[1];
  v_old jsonb := to_jsonb(old) - v_apart;
  v_new jsonb := to_jsonb(new) - v_apart;
  v_name text := coalesce(v_old, v_new) ->> v_key;
  v_change text;
begin
  if tg_op = 'UPDATE' then
    if v_old = v_new then
      return null;
    end if;
    select jsonb_object_agg(n, v_old -> n), jsonb_object_agg(n, v_new -> n) into v_old, v_new
    from jsonb_object_keys(v_new) n
    where v_old -> n is distinct from v_new -> n;
  else
    v_old := jsonb_strip_nulls(v_old - v_key);
    v_new := jsonb_strip_nulls(v_new - v_key);
  end if;
  v_change := case
    when tg_op = 'DELETE' then 'dropped'
    when v_new ->> 'paused_at' is not null and v_old ->> 'paused_at' is null then 'paused'
    when v_old ->> 'paused_at' is not null and v_new ->> 'paused_at' is null and v_new ? 'paused_at' then 'resumed'
    else 'set'
  end;

  insert into procjobs.setting_changes (at, kind, name, change, actor, reason, before, after)
  values (
    procjobs.clock(), tg_argv[0], v_name, v_change, session_user,
    coalesce(nullif(current_setting('procjobs.reason', true), ''), v_new ->> 'pause_reason'), v_old, v_new);
  return null;
end
$$;
comment on function procjobs.note_setting_change() is
  'Trigger (kind, column of the name): writes what of a row of settings was changed. Definer: whoever may change a setting need have no rights on its log.';

create or replace function procjobs.keep_setting_changes()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'DELETE' and old.at < procjobs.clock() - interval '1 year' then
    return old;
  end if;
  raise exception 'the log of settings is only added to'
    using errcode = 'insufficient_privilege',
          detail = format('%s of a row of procjobs.setting_changes that is younger than a year', lower(tg_op)),
          hint = 'What was changed by mistake is changed back; the log shows both.';
end
$$;
comment on function procjobs.keep_setting_changes() is 'Trigger: refuses to change the log of settings, or to delete what is younger than a year.';

create or replace function procjobs.forget_setting_changes(p_max_rows integer default 5000)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from procjobs.setting_changes
  where id = any (array(
    select c.id
    from procjobs.setting_changes c
    where c.at < procjobs.clock() - interval '1 year'
    order by c.id
    limit p_max_rows
  ));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.forget_setting_changes(integer) is
  'Deletes what the log of settings says of longer than a year ago, in bounded batches. A chore of upkeep. Returns how many.';

create or replace function procjobs.list_setting_changes(p_kind text default null, p_name text default null, p_max_rows integer default 50)
returns table (
  id bigint, at timestamptz, kind text, name text, change text, actor text, reason text, before jsonb, after jsonb
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select l.id, l.at, l.kind, l.name, l.change, l.actor, l.reason, l.before, l.after
  from procjobs.setting_log l
  where (p_kind is null or l.kind = p_kind)
    and (p_name is null or l.name = p_name)
  order by l.id desc
  limit p_max_rows
$$;
comment on function procjobs.list_setting_changes(text, text, integer) is
  'procjobs.setting_log, newest first: of queues, tasks or limits (p_kind queue, task, limit), of one name, or all.';
