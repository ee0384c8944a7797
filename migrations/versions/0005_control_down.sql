drop table
  procjobs.bulk_actions,
  procjobs.job_progress,
  procjobs.task_settings;
alter table procjobs.tasks drop column timeout;
alter table procjobs.job_history drop column timeout, drop column result;
drop index public.pj_jobs_deadline;
alter table public.procrastinate_jobs
  drop column pj_timeout,
  drop column pj_deadline,
  drop column pj_result,
  drop column pj_awaited;
