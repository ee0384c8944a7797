-- The log of settings: who changed what people set, from what to what, and why.
-- Owns:        setting_changes.
-- Lock order:  after the row that changed; rows are only added, so that nobody waits here.
-- Triggers write it, in the transaction of the change: what a DBA updates by hand is there too. triggers.sql makes them from
-- setting_kinds. They are for updates of columns that people set: one of what the engine keeps in the same row (where a
-- schedule is, how a breaker fares) does not come here.

create or replace function procjobs.setting_kinds()
returns table (kind text, relation text, part text, key text[], kept text[], scope text)
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select v.kind, v.relation, v.part, v.key::text[],
    v.kept::text[] || '{set_at, set_by, paused_by, created_at, updated_at, updated_by, registered_at}', v.scope
  from (values
    ('queue', 'queue_settings', '', '{name}', '{last_tenant, nobody_priority, nobody_id, look_priority, look_id}', null),
    ('task', 'task_settings', '', '{task}', '{}', null),
    ('limit', 'limits', '', '{name}', '{}', '%s.breaker is null'),
    ('breaker', 'breakers', '', '{name}',
      '{state, since, retry_at, openings, window_from, failed, succeeded, last_error, last_failure_at, opened_by}', '%s.set_by <> ''procjobs itself'''),
    ('schedule', 'schedules', '', '{name}', '{declared, last_slot, next_slot, due_at, held_until, undeclared_at, fault}', '%s.parent is null'),
    -- What it follows its parent in is said of the parent, once.
    ('schedule', 'schedules', '_child', '{name}',
      '{declared, last_slot, next_slot, due_at, held_until, undeclared_at, fault, task, args, queue, priority, tags, max_attempts, timeout, '
        'jitter, misfire, misfire_window, catch_up, grace, overlap, group, description}', '%s.parent is not null'),
    ('schedule_group', 'schedule_groups', '', '{name}', '{declared}', null),
    ('general', 'schedule_settings', '', '{id}', '{declared_timezone}', null),
    ('sql_task', 'tasks', '', '{name}', '{args_schema, execution, uniqueness}', '%s.routine is not null'),
    ('retention', 'retention_policies', '', '{task, queue, state}', '{id}', null),
    ('table_policy', 'table_policies', '', '{name}', '{}', null),
    ('retry_rule', 'retry_rules', '', '{task, error_class}', '{}', null),
    ('delivery_policy', 'delivery_policies', '', '{delivery_method}', '{}', null),
    ('reminder_step', 'reminder_steps', '', '{kind, name}', '{}', null),
    ('alert_recipient', 'alert_recipients', '', '{delivery_method, address}', '{id, told_at}', null)
  ) v (kind, relation, part, key, kept, scope)
$$;
comment on function procjobs.setting_kinds() is
  'What people set: the kind, its table, the columns that name a row, those that the log leaves to the engine or says itself, and which rows (scope). '
  'A column that is not kept is a setting. part: of a table whose rows are not all alike.';

create or replace function procjobs.setting_name(p_kind text, p_key text[], p_row jsonb)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case p_kind
    when 'general' then 'all'
    when 'retention' then procjobs.retention_scope(p_row ->> 'queue', p_row ->> 'task', p_row ->> 'state')
    else (select string_agg(nullif(p_row ->> k.name, ''), ' ' order by k.n) from unnest(p_key) with ordinality k (name, n))
  end
$$;
comment on function procjobs.setting_name(text, text[], jsonb) is 'What the log calls a row of settings.';

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
  v_key constant text[] := tg_argv[1];
  v_kept constant text[] := tg_argv[2];
  v_old jsonb := to_jsonb(old) - v_kept;
  v_new jsonb := to_jsonb(new) - v_kept;
  v_name text := procjobs.setting_name(tg_argv[0], v_key, coalesce(v_old, v_new));
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
    -- A name of one column says it all.
    v_old := jsonb_strip_nulls(v_old - case when cardinality(v_key) = 1 then v_key else '{}' end);
    v_new := jsonb_strip_nulls(v_new - case when cardinality(v_key) = 1 then v_key else '{}' end);
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
    coalesce(v_new ->> 'pause_reason', v_new ->> 'reason', nullif(current_setting('procjobs.reason', true), '')), v_old, v_new);
  return null;
end
$$;
comment on function procjobs.note_setting_change() is
  'Trigger (kind, columns of the name, columns that are none of its business): writes what of a row of settings was changed. Definer: whoever may change a setting need have no rights on its log.';

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
  'procjobs.setting_log, newest first: of one kind (p_kind: queue, task, limit, breaker, schedule, ...: procjobs.setting_kinds), of one name, or all.';
