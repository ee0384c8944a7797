drop table procjobs.batch_ends;
drop table procjobs.job_batches;
drop table procjobs.unique_keys;
alter table procjobs.tasks drop column uniqueness;
alter table procjobs.job_history drop column waiting_key, drop column batch;
alter table public.procrastinate_jobs drop column pj_waiting_key, drop column pj_batch;
