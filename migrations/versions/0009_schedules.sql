-- Schedules, the ledger of their slots, runs by hand, groups, alerts. Applied by 0009_schedules.py.

create table procjobs.schedule_settings (
  id boolean primary key default true,
  timezone text not null default 'UTC',
  declared_timezone text,
  keep_history interval not null default interval '400 days',
  backlog_queues text[] not null default '{notifications}',
  backlog_limit integer not null default 1000,
  constraint one_row check (id),
  constraint keep_history_positive check (keep_history > interval '0'),
  constraint backlog_limit_positive check (backlog_limit > 0)
);
insert into procjobs.schedule_settings default values;
comment on table procjobs.schedule_settings is 'What holds for all schedules; one row.';
comment on column procjobs.schedule_settings.timezone is 'Time zone of schedules that name none. Set with procjobs.set_cron_timezone.';
comment on column procjobs.schedule_settings.declared_timezone is 'What the environment (CRON_TIMEZONE) said last: written again only when it says something else.';
comment on column procjobs.schedule_settings.keep_history is 'How long slots and runs are remembered, and alerts that are over.';
comment on column procjobs.schedule_settings.backlog_queues is 'Queues of which too many waiting jobs are an alert. Set with procjobs.set_backlog_alert.';
comment on column procjobs.schedule_settings.backlog_limit is 'More waiting jobs than this are too many.';

create table procjobs.schedule_groups (
  name text primary key,
  enabled boolean not null default true,
  declared boolean,
  set_at timestamptz not null,
  set_by text not null default session_user,
  reason text,
  constraint name_length check (length(name) between 1 and 100)
);
comment on table procjobs.schedule_groups is 'Schedules that are switched on and off together, with procjobs.set_schedule_group.';
comment on column procjobs.schedule_groups.declared is 'What the environment (ENABLE_CLEANUP_JOBS and the like) said last: written again only when it says something else.';

create table procjobs.schedules (
  name text primary key,
  task varchar(128) not null,
  args jsonb not null default '{}',
  own_args jsonb,
  queue varchar(128),
  priority integer,
  tenant text,
  tags text[],
  max_attempts integer,
  timeout interval,
  lock text,
  queueing_lock text,
  cron text,
  every interval,
  timezone text,
  anchor timestamptz not null default '2000-01-01 00:00Z',
  jitter interval not null default interval '0',
  misfire text not null default 'latest',
  misfire_window interval not null default interval '1 day',
  catch_up integer not null default 100,
  grace interval not null default interval '1 minute',
  overlap text not null default 'skip',
  "group" text,
  parent text references procjobs.schedules (name) on delete cascade,
  description text,
  source text not null,
  periodic_id text,
  declared jsonb not null default '{}',
  last_slot timestamptz not null,
  next_slot timestamptz,
  due_at timestamptz,
  held_until timestamptz,
  undeclared_at timestamptz,
  paused_at timestamptz,
  paused_by text,
  pause_reason text,
  fault text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  updated_by text not null default session_user,
  constraint cron_or_every check (num_nonnulls(cron, every) = 1),
  constraint misfire_known check (misfire in ('skip', 'latest', 'all')),
  constraint overlap_known check (overlap in ('skip', 'queue', 'allow')),
  constraint source_known check (source in ('sql', 'code', 'periodic', 'file', 'pack'))
) with (fillfactor = 70);
create index schedules_due on procjobs.schedules (due_at) where due_at is not null;
create index schedules_parent on procjobs.schedules (parent) where parent is not null;
create index schedules_group on procjobs.schedules ("group") where "group" is not null;
create index schedules_coded on procjobs.schedules (name) where source in ('code', 'periodic');
comment on table procjobs.schedules is 'What is to be enqueued again and again. Set with procjobs.schedule, see procjobs.schedule_list.';
comment on column procjobs.schedules.own_args is 'Of a child: its own arguments, over its parent''s.';
comment on column procjobs.schedules.queue is 'Null, like priority, max_attempts and timeout: as the task says.';
comment on column procjobs.schedules.timezone is 'Null: the one of schedule_settings.';
comment on column procjobs.schedules.anchor is 'Slots of an interval are this instant and every so often before and after it.';
comment on column procjobs.schedules.jitter is 'Each job is put off by a part of this, always the same for a slot. The slot stays where it is.';
comment on column procjobs.schedules.misfire is 'What becomes of slots that nobody fired in time: skip, latest (the newest of them is made up for), all.';
comment on column procjobs.schedules.misfire_window is 'Slots older than this are not looked at one by one.';
comment on column procjobs.schedules.catch_up is 'How many slots are made up for at most, with misfire = all.';
comment on column procjobs.schedules.grace is 'A slot that is later than this was missed.';
comment on column procjobs.schedules.overlap is 'When the last job has not ended: skip the slot, queue one job, or allow any number at once.';
comment on column procjobs.schedules.parent is 'The schedule whose task, arguments and options this one follows; its time, pause and history are its own.';
comment on column procjobs.schedules.source is 'Who made it: sql, code (@app.schedule), periodic (@app.periodic), file (procjobs.toml), pack (procjobs itself).';
comment on column procjobs.schedules.periodic_id is 'Of a periodic task: the id that procrastinate_periodic_defers knows it by.';
comment on column procjobs.schedules.declared is 'What code and file said last. Only what they say differently is written, so that what an administrator changed stays.';
comment on column procjobs.schedules.last_slot is 'Slots until here were dealt with.';
comment on column procjobs.schedules.next_slot is 'The first slot after that.';
comment on column procjobs.schedules.due_at is 'When the clock looks at it: at its next slot; at once when it was held off and goes on. Null: it is held off.';
comment on column procjobs.schedules.held_until is 'Until then it was paused or switched off: older slots were not missed.';
comment on column procjobs.schedules.undeclared_at is 'Since when no living process has it in its code any more; forgotten seven days later.';
comment on column procjobs.schedules.fault is 'Why it does not fire, or what was wrong with its last slot.';

create table procjobs.schedule_ticks (
  schedule text not null,
  slot timestamptz not null,
  kind text not null default 'slot',
  outcome text not null,
  reason text,
  missed boolean not null default false,
  fired_at timestamptz not null,
  fired_by text not null,
  job_id bigint,
  status public.procrastinate_job_status,
  started_at timestamptz,
  ended_at timestamptz,
  attempts integer,
  rows bigint,
  error text,
  primary key (schedule, slot),
  constraint kind_known check (kind in ('slot', 'backfill')),
  constraint outcome_known check (outcome in ('fired', 'skipped', 'refused'))
);
create index schedule_ticks_open on procjobs.schedule_ticks (schedule, job_id) where job_id is not null and ended_at is null;
create index schedule_ticks_slot on procjobs.schedule_ticks (slot);
comment on table procjobs.schedule_ticks is 'The ledger: every slot of every schedule, once, and what became of its job. Outlives jobs and schedules. Read procjobs.schedule_history.';
comment on column procjobs.schedule_ticks.kind is 'slot: fired by a clock. backfill: by procjobs.backfill.';
comment on column procjobs.schedule_ticks.outcome is 'fired: a job was enqueued. skipped: see reason. refused: it could not be enqueued.';
comment on column procjobs.schedule_ticks.missed is 'Nobody fired it in time.';
comment on column procjobs.schedule_ticks.fired_by is 'Whose clock it was: a worker, pg_cron, or a database user.';
comment on column procjobs.schedule_ticks.status is 'How the job ended, with the columns after it; copied here, since jobs are forgotten. Null with an ended_at: it was deleted without a trace.';
comment on column procjobs.schedule_ticks.rows is 'What the task returned, if that is a whole number.';

create table procjobs.schedule_runs (
  id bigint generated always as identity primary key,
  schedule text not null,
  key text,
  triggered_at timestamptz not null,
  triggered_by text not null default session_user,
  job_id bigint,
  status public.procrastinate_job_status,
  started_at timestamptz,
  ended_at timestamptz,
  attempts integer,
  rows bigint,
  error text
);
create unique index schedule_runs_key on procjobs.schedule_runs (schedule, key) where key is not null;
create index schedule_runs_at on procjobs.schedule_runs (schedule, triggered_at desc);
create index schedule_runs_open on procjobs.schedule_runs (schedule, job_id) where job_id is not null and ended_at is null;
comment on table procjobs.schedule_runs is 'Runs by hand: procjobs.run_now. Read procjobs.schedule_history.';
comment on column procjobs.schedule_runs.key is 'What the caller gave so that a second call is not a second run.';

create table procjobs.alerts (
  id bigint generated always as identity primary key,
  kind text not null,
  subject text not null,
  message text not null,
  details jsonb not null default '{}',
  first_at timestamptz not null,
  last_at timestamptz not null,
  times integer not null default 1,
  closed_at timestamptz,
  closed_by text
);
create unique index alerts_open on procjobs.alerts (kind, subject) where closed_at is null;
create index alerts_closed on procjobs.alerts (closed_at) where closed_at is not null;
comment on table procjobs.alerts is 'What somebody should look at. One open row for a kind and subject; it closes by itself when it is over, and stays.';
comment on column procjobs.alerts.kind is 'missed_slot, schedule_failing, cleanup_idle, backlog, no_clock, process_down.';
comment on column procjobs.alerts.subject is 'The schedule, queue or process it is about.';
comment on column procjobs.alerts.times is 'How often it was found again.';

alter table procjobs.worker_state
  add column kind text not null default 'worker',
  add column schedules text[] not null default '{}';
comment on column procjobs.worker_state.kind is 'worker: runs jobs. scheduler: keeps time only.';
comment on column procjobs.worker_state.schedules is 'Schedules that its code declares: they fire while somebody does.';
