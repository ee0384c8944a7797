-- Undoes 0019_successes.sql. Successes before a retry are forgotten.

delete from procjobs.job_attempts where outcome = 'succeeded';
alter table procjobs.job_attempts
  drop constraint outcome_known,
  add constraint outcome_known check (outcome in
    ('failed', 'crashed', 'cancelled', 'snoozed', 'released', 'discarded', 'superseded', 'unreadable'));
comment on table procjobs.job_attempts is 'Every run that did not succeed: error, traceback, worker, times. Read procjobs.attempts instead.';
