delete from procjobs.worker_state where kind = 'session';
alter table procjobs.worker_state
  drop column runs_sql,
  drop column sql_tasks,
  drop column login,
  drop column stop_sent_at,
  drop column last_words;
-- A task whose body only SQL knows is unknown to what comes before.
delete from procjobs.tasks where routine is not null;
alter table procjobs.tasks
  drop column routine,
  drop column run_as;
alter table public.procrastinate_jobs
  alter column pj_created_at set default statement_timestamp();
