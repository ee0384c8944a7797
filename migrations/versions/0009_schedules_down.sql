alter table procjobs.worker_state drop column kind, drop column schedules;
drop table procjobs.alerts;
drop table procjobs.schedule_runs;
drop table procjobs.schedule_ticks;
drop table procjobs.schedules;
drop table procjobs.schedule_groups;
drop table procjobs.schedule_settings;
