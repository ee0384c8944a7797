drop table procjobs.retention_log;
drop table procjobs.retention_marks;
drop table procjobs.retention_policies;
drop index procjobs.job_history_finished;
alter table procjobs.job_attempts drop column fingerprint;
drop index public.pj_jobs_ended;
drop index public.pj_jobs_dead_error;
alter table public.procrastinate_jobs drop column pj_fingerprint;
