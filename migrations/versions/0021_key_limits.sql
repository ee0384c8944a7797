-- Limits by a key alone. Applied by 0021_key_limits.py.

alter table procjobs.limits
  drop constraint something_in_scope,
  add constraint something_in_scope check (num_nonnulls(task, queue, tasks, key) > 0);
