alter table procjobs.worker_state reset (fillfactor);
drop table procjobs.limit_grants;
drop table procjobs.limit_state;
drop table procjobs.limits;
alter table procjobs.queue_settings drop column fair, drop column last_tenant, drop column ageing;
alter table procjobs.job_history drop column tenant;
drop index public.pj_jobs_paused_task;
update public.procrastinate_jobs set pj_waits_for = null where pj_waits_for in ('pause', 'limit');
alter table public.procrastinate_jobs
  drop constraint pj_waits_for_known,
  add constraint pj_waits_for_known check (pj_waits_for in ('time', 'lock', 'task', 'limit')) not valid,
  drop column pj_tenant,
  drop column pj_limits,
  drop column pj_held_by;
comment on column public.procrastinate_jobs.pj_waits_for is
  'What keeps a waiting job out of the claim: time (not due), lock (another job holds or precedes on the lock), task (no worker knew the task), limit. Null: claimable.';
