drop table procjobs.notification_delivery_logs;
drop table procjobs.notification_jobs;
delete from procjobs.tasks where name = 'procjobs.send_notification';
