-- Undoes 0015_breakers.sql.

comment on column procjobs.alerts.kind is 'missed_slot, schedule_failing, cleanup_idle, backlog, no_clock, process_down.';
alter table procjobs.schedule_settings
  drop constraint failed_limit_positive,
  drop column failed_limit,
  drop column failed_within;
drop table procjobs.effects;
drop table procjobs.delivery_policies;
drop index procjobs.notification_delivery_logs_doubtful;
drop index procjobs.notification_delivery_logs_finished;
alter table procjobs.notification_delivery_logs drop column resolved_at, drop column resolved_by;
delete from procjobs.limit_grants where key like 'breaker:%';
delete from procjobs.limit_state where limit_name like 'breaker:%';
delete from procjobs.limits where breaker is not null or name = 'notifications';
drop table procjobs.breakers;
alter table procjobs.limits
  drop constraint something_in_scope,
  add constraint something_in_scope check (task is not null or queue is not null),
  drop column breaker,
  drop column tag,
  drop column tasks;
update public.procrastinate_jobs set pj_waits_for = null, pj_held_by = null where pj_held_by like 'breaker:%';
