-- Undoes 0016_digests.sql. What was due is forgotten; mails that were requested stay.

delete from procjobs.schedules where name in ('create_digest_jobs', 'process_email_queue') and source = 'pack';
delete from procjobs.tasks where name in ('procjobs.create_digest_jobs', 'procjobs.process_email_queue');
drop trigger if exists pj_follow_notices on procjobs.notification_jobs;
drop table procjobs.notification_email_queue, procjobs.digest_runs, procjobs.digest_schedules;
