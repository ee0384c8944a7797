-- Undoes 0025_reports.sql. Who asked for reports is forgotten; mails that were requested stay.

delete from procjobs.schedules where name = 'create_daily_reports' and source = 'pack';
delete from procjobs.tasks where name in ('procjobs.create_daily_reports', 'GENERATE_REPORT');
drop view if exists procjobs.report_subscription_list;
drop index procjobs.pending_invites_accepted;
drop table procjobs.daily_reports, procjobs.report_subscriptions cascade;
