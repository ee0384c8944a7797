-- Locks that tasks have by themselves. Applied by 0020_task_locks.py.

alter table procjobs.tasks
  add column lock text,
  add column queueing_lock text;
comment on column procjobs.tasks.lock is 'Lock of its jobs that name none.';
comment on column procjobs.tasks.queueing_lock is 'Queueing lock of its jobs that name none.';
