-- Steps of reminders: of what, when and how people are reminded.
-- Owns:        procjobs.reminder_steps; the SQL tasks and schedules create_payment_reminders and create_event_reminders.
-- Lock order:  reminder_steps, one row; tasks, then schedules by name.

create or replace function procjobs.reminder_step_problems(p_step procjobs.reminder_steps)
returns text[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(p.problem) filter (where p.is_so), '{}')
  from (values
    (p_step.kind is null or p_step.kind not in ('payment', 'event'),
      format('kind %s is neither payment nor event', coalesce(quote_literal(p_step.kind), 'null'))),
    (p_step.name is null or p_step.name !~ '^[a-z][a-z0-9_]{0,62}$' collate "C",
      format('name %s is not a lowercase word of at most 63 letters', coalesce(quote_literal(p_step.name), 'null'))),
    (p_step.kind = 'payment' and p_step.after is null, 'after is missing: how long after the advance was paid'),
    (p_step.kind = 'payment' and p_step.before is not null, 'before is for events; of payments it is after'),
    (p_step.kind = 'event' and p_step.after is not null, 'after is for payments; of events it is before'),
    (p_step.kind = 'event' and p_step.every is not null, 'every is for payments; an event can have several steps'),
    (p_step.after < interval '0' or p_step.after > interval '10 years', format('after is %s, not 0 to 10 years', p_step.after)),
    (p_step.before <= interval '0' or p_step.before > interval '10 years', format('before is %s, not more than 0 and up to 10 years', p_step.before)),
    (p_step.every < interval '1 day' or extract(year from p_step.every) <> 0 or extract(month from p_step.every) <> 0,
      format('every is %s, not a day or more, in days', p_step.every)),
    (procjobs.urgency_problem(p_step.urgency) is not null, procjobs.urgency_problem(p_step.urgency)),
    (length(p_step.heading) > 100 or p_step.heading ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]', 'heading is not one line of at most 100 characters'),
    (length(p_step.words) > 5000, format('words has %s characters, at most 5000 are allowed', length(p_step.words)))
  ) p (is_so, problem)
$$;
comment on function procjobs.reminder_step_problems(procjobs.reminder_steps) is 'Why there can be no such step, one sentence each; empty if it can be.';

create or replace function procjobs.set_reminder_step(
  kind text,
  name text,
  after interval default null,
  before interval default null,
  every interval default null,
  urgency text default null,
  heading text default null,
  words text default null,
  enabled boolean default null
)
returns procjobs.reminder_steps
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_step procjobs.reminder_steps;
  v_problems text[];
begin
  select s.* into v_step
  from procjobs.reminder_steps s
  where s.kind = set_reminder_step.kind and s.name = set_reminder_step.name
  for update;
  v_step.kind := set_reminder_step.kind;
  v_step.name := set_reminder_step.name;
  v_step.after := coalesce(set_reminder_step.after, v_step.after);
  v_step.before := coalesce(set_reminder_step.before, v_step.before);
  v_step.every := nullif(coalesce(set_reminder_step.every, v_step.every), interval '0');
  v_step.urgency := coalesce(set_reminder_step.urgency, v_step.urgency, 'normal');
  v_step.heading := nullif(coalesce(set_reminder_step.heading, v_step.heading), '');
  v_step.words := nullif(coalesce(set_reminder_step.words, v_step.words), '');
  v_step.enabled := coalesce(set_reminder_step.enabled, v_step.enabled, true);
  v_step.set_at := procjobs.clock();
  v_step.set_by := session_user;
  v_problems := procjobs.reminder_step_problems(v_step);
  if v_problems <> '{}' then
    raise exception 'there can be no such reminder: %', v_problems[1]
      using errcode = 'PJ070',
            detail = array_to_string(v_problems, E'\n'),
            hint = 'For example: set_reminder_step(''payment'', ''first'', after => ''3 days''), '
              'set_reminder_step(''event'', ''soon'', before => ''1 hour'').';
  end if;
  insert into procjobs.reminder_steps select v_step.*
  on conflict (kind, name) do update
  set (after, before, every, urgency, heading, words, enabled, set_at, set_by) = (
    excluded.after, excluded.before, excluded.every, excluded.urgency, excluded.heading, excluded.words, excluded.enabled,
    excluded.set_at, excluded.set_by);
  return v_step;
end
$$;
comment on function procjobs.set_reminder_step(text, text, interval, interval, interval, text, text, text, boolean) is
  'Makes a step of reminders, or changes what is given of it. Of a payment: after the advance was paid, again every so long (''0'': once). Of an '
  'event: before it begins; without before as the attendee chose. heading and words (empty: none) are said in the mail. Returns the step. PJ070: '
  'there can be no such step. Definer: the admin role has no rights on tables.';

create or replace function procjobs.drop_reminder_step(kind text, name text)
returns boolean
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  with gone as (
    delete from procjobs.reminder_steps s
    where s.kind = drop_reminder_step.kind
      and s.name = drop_reminder_step.name
    returning s.name
  )
  select exists (select from gone)
$$;
comment on function procjobs.drop_reminder_step(text, text) is
  'Removes a step of reminders; what it sent stays on record. False if there is none. Definer: the admin role has no rights on tables.';

create or replace function procjobs.list_reminder_steps(p_kind text default null)
returns setof procjobs.reminder_steps
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.*
  from procjobs.reminder_steps s
  where p_kind is null or s.kind = p_kind
  order by s.kind desc, s.after, s.before desc nulls first, s.name
$$;
comment on function procjobs.list_reminder_steps(text) is
  'Steps of reminders in the order in which they come. Definer: the reader role has no rights on tables.';

create or replace function procjobs.declare_reminders()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.register_sql_task(
    t.name, t.routine, queue => 'reminders', priority => 5, max_attempts => t.runs, backoff_base => '1 minute', timeout => '10 minutes')
  from (values
    ('procjobs.create_payment_reminders', 'procjobs.create_payment_reminders', 3),
    ('procjobs.create_event_reminders', 'procjobs.create_event_reminders', 1),
    ('SEND_EVENT_REMINDER', 'procjobs.create_event_reminders', 3)
  ) t (name, routine, runs);
  return (
    select count(*)
    from procjobs.declare_schedules('pack', '[
      {"name": "create_payment_reminders", "task": "procjobs.create_payment_reminders", "cron": "0 10 * * *", "group": "payment_reminders",
        "description": "Reminders of balances that are unpaid"},
      {"name": "create_event_reminders", "task": "procjobs.create_event_reminders", "cron": "* * * * *", "group": "event_reminders",
        "description": "Reminders of events that come"}
    ]') d
    where d.changed
  );
end
$$;
comment on function procjobs.declare_reminders() is
  'Registers the SQL tasks of reminders and makes their schedules. migrate calls it. Returns how many schedules are new or changed.';
