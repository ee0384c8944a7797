-- What the history holds, in the words of procjobs.jobs.state. Applied by 0008_history_state.py.
-- Adding the constraint reads the whole history once.

alter table procjobs.job_history add constraint history_state check (
  case status when 'succeeded' then 'succeeded' when 'failed' then 'failed' when 'cancelled' then 'cancelled' else 'aborted' end
    in ('succeeded', 'failed', 'cancelled', 'aborted')
);
comment on constraint history_state on procjobs.job_history is
  'Always true: by it the planner leaves the history out when somebody asks procjobs.jobs for a state of jobs that have not ended.';

create index job_history_unsuccessful_state on procjobs.job_history (id)
  where case status when 'succeeded' then 'succeeded' when 'failed' then 'failed' when 'cancelled' then 'cancelled' else 'aborted' end
    <> 'succeeded';
