drop index procjobs.job_history_unsuccessful_state;
alter table procjobs.job_history drop constraint history_state;
