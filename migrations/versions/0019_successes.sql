-- A run that succeeded is kept when its job is retried by hand. Applied by 0019_successes.py.
-- Not checked against the rows there are, which the narrower constraint let in: no lock is held for long.

alter table procjobs.job_attempts
  drop constraint outcome_known,
  add constraint outcome_known check (outcome in
    ('failed', 'crashed', 'cancelled', 'snoozed', 'released', 'discarded', 'superseded', 'unreadable', 'succeeded')) not valid;
comment on table procjobs.job_attempts is
  'Every run that did not succeed, and those that did of jobs retried since: error, traceback, worker, times. Read procjobs.attempts instead.';
