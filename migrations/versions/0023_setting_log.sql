-- The log of settings: pauses, what was set for queues and tasks, limits. Applied by 0023_setting_log.py.

create table procjobs.setting_changes (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  kind text not null,
  name text not null,
  change text not null,
  actor text not null default session_user,
  reason text,
  before jsonb,
  after jsonb,
  constraint kind_known check (kind in ('queue', 'task', 'limit')),
  constraint change_known check (change in ('paused', 'resumed', 'set', 'dropped'))
);
create index setting_changes_name on procjobs.setting_changes (name, id);
comment on table procjobs.setting_changes is
  'Every change of a queue''s, task''s or limit''s settings, written by triggers; only added to, kept for a year. Read procjobs.setting_log.';
comment on column procjobs.setting_changes.at is 'When.';
comment on column procjobs.setting_changes.kind is 'queue, task or limit.';
comment on column procjobs.setting_changes.name is 'Which one.';
comment on column procjobs.setting_changes.change is 'paused, resumed, set (made, changed, reset) or dropped.';
comment on column procjobs.setting_changes.actor is 'Database user who did it.';
comment on column procjobs.setting_changes.reason is 'Why.';
comment on column procjobs.setting_changes.before is 'What is different, as it was; null: it was made.';
comment on column procjobs.setting_changes.after is 'What is different, as it is since; null: it was dropped.';
