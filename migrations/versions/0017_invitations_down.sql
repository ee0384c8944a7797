-- Undoes 0017_invitations.sql. Invitations, their letters, tasks and schedules go.

drop trigger if exists follow_invitation on procjobs.notification_jobs;
drop table procjobs.pending_invites cascade;
drop table procjobs.letter_secrets;
delete from procjobs.notification_jobs where template = 'invitation';
delete from procjobs.schedules where source = 'pack' and name in ('process_pending_invites', 'expire_invites');
delete from procjobs.tasks where name in ('procjobs.process_pending_invites', 'procjobs.expire_invites', 'SEND_INVITE_EMAIL');
