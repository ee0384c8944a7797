-- Undoes 0021_key_limits.sql. Limits by a key alone are gone; what waits for them goes on with the next sweep.

delete from procjobs.limit_grants where key in (
  select s.key from procjobs.limit_state s join procjobs.limits l on l.name = s.limit_name where num_nonnulls(l.task, l.queue, l.tasks) = 0);
delete from procjobs.limit_state where limit_name in (select name from procjobs.limits where num_nonnulls(task, queue, tasks) = 0);
delete from procjobs.limits where num_nonnulls(task, queue, tasks) = 0;
alter table procjobs.limits
  drop constraint something_in_scope,
  add constraint something_in_scope check (task is not null or queue is not null or tasks is not null);
