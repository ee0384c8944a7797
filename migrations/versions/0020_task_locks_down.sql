-- Undoes 0020_task_locks.sql.

alter table procjobs.tasks
  drop column lock,
  drop column queueing_lock;
