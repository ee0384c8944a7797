-- Undoes 0029_late_updates.sql.

alter table procjobs.digest_schedules drop column told_lately;
