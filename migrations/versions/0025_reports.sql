-- Daily reports. Applied by 0025_reports.py.

create table procjobs.report_subscriptions (
  id bigint generated always as identity primary key,
  person_id uuid,
  address text,
  address_name text,
  addressee text not null generated always as (coalesce(person_id::text, lower(address))) stored,
  timezone text,
  delivery_time time not null default '07:00',
  created_at timestamptz not null,
  set_at timestamptz not null,
  set_by text not null,
  constraint one_addressee check (num_nonnulls(person_id, address) = 1),
  constraint name_of_address check (address_name is null or address is not null)
);
create unique index report_subscriptions_addressee on procjobs.report_subscriptions (addressee);
comment on table procjobs.report_subscriptions is
  'Who asked for the daily report. Set with procjobs.subscribe_report. Read procjobs.report_subscription_list instead.';
comment on column procjobs.report_subscriptions.id is 'Number of the row.';
comment on column procjobs.report_subscriptions.person_id is 'Who gets it: host_people.id.';
comment on column procjobs.report_subscriptions.address is 'Where it goes, when it is not to a person: an operator.';
comment on column procjobs.report_subscriptions.address_name is 'How to address whoever reads mail there.';
comment on column procjobs.report_subscriptions.addressee is 'Either of them, in the form in which unsubscriptions name it.';
comment on column procjobs.report_subscriptions.timezone is 'Where days begin and the clock shows delivery_time; null: where the person lives, else UTC.';
comment on column procjobs.report_subscriptions.delivery_time is 'Not before this local time.';
comment on column procjobs.report_subscriptions.created_at is 'Since when. What was due before is not made up for.';
comment on column procjobs.report_subscriptions.set_at is 'When it was last set.';
comment on column procjobs.report_subscriptions.set_by is 'By whom.';

create table procjobs.daily_reports (
  id bigint generated always as identity primary key,
  addressee text not null,
  local_day date not null,
  timezone text not null,
  created_at timestamptz not null,
  outcome text not null,
  reason text,
  notification_id uuid,
  constraint outcome_known check (outcome in ('created', 'unreachable')),
  constraint unreachable_says_why check ((outcome = 'unreachable') = (reason is not null))
);
create unique index daily_reports_day on procjobs.daily_reports (addressee, local_day);
create index daily_reports_created on procjobs.daily_reports (created_at);
comment on table procjobs.daily_reports is 'Each daily report that was due: one for an addressee and local day. Written by procjobs.create_daily_reports.';
comment on column procjobs.daily_reports.id is 'Number of the row.';
comment on column procjobs.daily_reports.addressee is 'For whom: report_subscriptions.addressee.';
comment on column procjobs.daily_reports.local_day is 'The day that it tells of.';
comment on column procjobs.daily_reports.timezone is 'Where that day began and ended.';
comment on column procjobs.daily_reports.created_at is 'When it was found due.';
comment on column procjobs.daily_reports.outcome is 'created (a mail was requested) or unreachable.';
comment on column procjobs.daily_reports.reason is 'Why nothing was sent, in words; null when a mail was requested.';
comment on column procjobs.daily_reports.notification_id is 'The mail: notification_jobs.id.';

create index pending_invites_accepted on procjobs.pending_invites (accepted_at) where accepted_at is not null;
