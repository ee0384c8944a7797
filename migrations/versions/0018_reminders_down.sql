-- Undoes 0018_reminders.sql. What was sent is forgotten; mails that were requested stay.

delete from procjobs.schedules where name in ('create_payment_reminders', 'create_event_reminders') and source = 'pack';
delete from procjobs.tasks where name in ('procjobs.create_payment_reminders', 'procjobs.create_event_reminders');
drop view if exists procjobs.reminders;
drop table procjobs.event_reminders, procjobs.payment_reminders, procjobs.reminder_steps cascade;
