-- What comes with procjobs and runs by itself: SQL tasks and schedules. Applied after the host's own file, whose policies
-- have theirs. What was changed by hand since the last time stays so.

select procjobs.give_reason('comes with procjobs');

select procjobs.declare_retention();

select procjobs.declare_notifications();
select procjobs.declare_digests();
select procjobs.declare_invitations();
select procjobs.declare_reminders();
select procjobs.declare_reports();

select procjobs.give_reason('');
