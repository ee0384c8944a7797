-- Circuit breakers, limits of the notifications queue, doubtful deliveries, the ledger of effects. Applied by 0015_breakers.py.

-- A breaker that is not closed is a limit: nothing may run (open), or one job (half open).
alter table procjobs.limits
  add column tasks text[],
  add column tag text,
  add column breaker text unique,
  drop constraint something_in_scope,
  add constraint something_in_scope check (task is not null or queue is not null or tasks is not null);
comment on column procjobs.limits.tasks is 'Tasks whose jobs it is for, where they are several; null is any.';
comment on column procjobs.limits.tag is 'It is only for jobs that carry this tag; null is any.';
comment on column procjobs.limits.breaker is 'The breaker that made this row when it opened, and takes it away when it closes.';

create table procjobs.breakers (
  name text primary key,
  tasks text[],
  queue text,
  tag text,
  failures integer not null default 5,
  rate double precision not null default 0.5,
  per interval not null default '1 minute',
  cool_down interval not null default '30 seconds',
  longest interval not null default '10 minutes',
  state text not null default 'closed',
  since timestamptz not null,
  retry_at timestamptz,
  openings integer not null default 0,
  window_from timestamptz,
  failed integer not null default 0,
  succeeded integer not null default 0,
  last_error text,
  last_failure_at timestamptz,
  opened_by text,
  set_at timestamptz not null,
  set_by text not null default session_user,
  constraint something_in_scope check (queue is not null or tasks is not null),
  constraint tasks_named check (cardinality(tasks) > 0),
  constraint state_known check (state in ('closed', 'open', 'half_open')),
  constraint threshold_positive check (failures > 0 and rate >= 0 and rate <= 1 and per > interval '0'),
  constraint cool_down_positive check (cool_down > interval '0' and longest >= cool_down),
  constraint open_until check ((state = 'open') = (retry_at is not null))
) with (fillfactor = 50);
comment on table procjobs.breakers is
  'Circuit breakers, one row for what is outside and may fail. Set with procjobs.set_breaker, see procjobs.breaker_list.';
comment on column procjobs.breakers.tasks is 'Tasks whose jobs need it; null is any.';
comment on column procjobs.breakers.queue is 'Queue whose jobs need it; null is any.';
comment on column procjobs.breakers.tag is 'Only jobs that carry this tag need it; null is any.';
comment on column procjobs.breakers.failures is 'It opens after so many failures within `per` ...';
comment on column procjobs.breakers.rate is '... if they are at least this share of all outcomes since the first of them.';
comment on column procjobs.breakers.per is 'How long failures count; the span begins with the first.';
comment on column procjobs.breakers.cool_down is 'How long it stays open; twice as long after each probe that failed.';
comment on column procjobs.breakers.longest is 'The longest cool-down.';
comment on column procjobs.breakers.state is 'closed: jobs run; open: they wait; half_open: one runs as a probe.';
comment on column procjobs.breakers.since is 'Since when it is in this state.';
comment on column procjobs.breakers.retry_at is 'When an open one becomes half open; infinity: not by itself.';
comment on column procjobs.breakers.openings is 'How often it opened since it was closed last.';
comment on column procjobs.breakers.window_from is 'When the span began over which outcomes are counted.';
comment on column procjobs.breakers.failed is 'Failures since then.';
comment on column procjobs.breakers.succeeded is 'Successes since then.';
comment on column procjobs.breakers.last_error is 'What the last failure said.';
comment on column procjobs.breakers.last_failure_at is 'When that was.';
comment on column procjobs.breakers.opened_by is 'Who opened it by hand; null: failures did.';
comment on column procjobs.breakers.set_at is 'When it was last set.';
comment on column procjobs.breakers.set_by is 'By whom.';

insert into procjobs.breakers (name, queue, tag, failures, rate, set_at, since)
select b.name, 'notifications', b.tag, b.failures, b.rate, statement_timestamp(), statement_timestamp()
from (
  values
    ('smtp', 'email', 5, 0.5), ('sms', 'sms', 5, 0.5), ('whatsapp', 'whatsapp', 5, 0.5), ('slack', 'slack', 5, 0.5),
    -- Each receiver is a server of its own: only when nearly all fail, ours is cut off.
    ('webhook', 'webhook', 20, 0.9)
) as b(name, tag, failures, rate);

-- Rows, so that what an administrator makes of them stays.
insert into procjobs.limits (name, queue, max_running, rate, per, set_at)
values ('notifications', 'notifications', 5, 50, interval '1 second', statement_timestamp())
on conflict (name) do nothing;

alter table procjobs.notification_delivery_logs
  add column resolved_at timestamptz,
  add column resolved_by text;
comment on column procjobs.notification_delivery_logs.resolved_at is
  'When somebody said what became of a try whose end nobody saw.';
comment on column procjobs.notification_delivery_logs.resolved_by is 'Who said so.';
create index notification_delivery_logs_finished on procjobs.notification_delivery_logs (finished_at);
create index notification_delivery_logs_doubtful on procjobs.notification_delivery_logs (job_id)
  where status = 'unknown' and resolved_at is null;

create table procjobs.delivery_policies (
  delivery_method text primary key,
  after_unknown text not null,
  set_at timestamptz not null,
  set_by text not null default session_user,
  constraint after_unknown_known check (after_unknown in ('retry', 'hold'))
);
comment on table procjobs.delivery_policies is
  'What follows a try whose end nobody saw, by delivery method; hold where there is no row. Set with procjobs.set_delivery_policy.';
comment on column procjobs.delivery_policies.delivery_method is 'As in notification_jobs.';
comment on column procjobs.delivery_policies.after_unknown is
  'retry: it is sent again, under the same Message-ID; hold: not before somebody resolves it.';
comment on column procjobs.delivery_policies.set_at is 'When it was last set.';
comment on column procjobs.delivery_policies.set_by is 'By whom.';
insert into procjobs.delivery_policies (delivery_method, after_unknown, set_at)
select m.name, m.after_unknown, statement_timestamp()
from (
  values ('email', 'retry'), ('slack', 'retry'), ('webhook', 'retry'), ('sms', 'hold'), ('whatsapp', 'hold')
) as m(name, after_unknown);

create table procjobs.effects (
  key text primary key,
  state text not null,
  job_id bigint,
  provider_id text,
  began_at timestamptz not null,
  ended_at timestamptz,
  resolved_by text,
  constraint key_short check (length(key) between 1 and 500),
  constraint state_known check (state in ('intent', 'done', 'unknown'))
);
create index effects_ended on procjobs.effects (ended_at) where state = 'done';
comment on table procjobs.effects is
  'What tasks do outside the database, by a key of their own: begun with procjobs.begin_effect, ended with procjobs.end_effect.';
comment on column procjobs.effects.key is 'What is done, e.g. charge:order-17.';
comment on column procjobs.effects.state is
  'intent: begun; done; unknown: begun before, and nobody knows whether it was done.';
comment on column procjobs.effects.job_id is 'The job that began it last.';
comment on column procjobs.effects.provider_id is 'What the other side calls it.';
comment on column procjobs.effects.began_at is 'When it was begun last.';
comment on column procjobs.effects.ended_at is 'When it was known to be done.';
comment on column procjobs.effects.resolved_by is 'Who said what became of an unknown one.';

alter table procjobs.schedule_settings
  add column failed_limit integer not null default 100,
  add column failed_within interval not null default '1 hour',
  add constraint failed_limit_positive check (failed_limit > 0 and failed_within > interval '0');
comment on column procjobs.schedule_settings.failed_limit is
  'More failed notifications than this are an alert. Set with procjobs.set_failed_alert.';
comment on column procjobs.schedule_settings.failed_within is 'Over how long they are counted.';
comment on column procjobs.alerts.kind is
  'missed_slot, schedule_failing, cleanup_idle, backlog, no_clock, process_down, breaker_open, notifications_failed.';
