-- Rates that count runs until after their end. Applied by 0027_rate_counts.py.

alter table procjobs.limits
  add column rate_counts text,
  add constraint rate_counts_known check (rate_counts is null or rate_counts in ('starts', 'runs') and rate is not null);
comment on column procjobs.limits.rate_counts is
  'What the rate counts: starts within any span of per (also null); or runs, each from its start until per after its end, so that whoever the jobs call sees no more within any span of per, either.';

create table procjobs.limit_ends (
  key text not null,
  at timestamptz not null
);
create index limit_ends_key on procjobs.limit_ends (key, at);
comment on table procjobs.limit_ends is
  'Runs that ended and still count for a rate that counts runs: one row each, written in the transaction in which the job stops running.';

-- Mails: what the server sees must not exceed the rate.
update procjobs.limits set rate_counts = 'runs' where name = 'notifications' and queue = 'notifications' and rate is not null;
