-- Undoes 0030_muted_groups.sql.

alter table procjobs.digest_schedules drop column held_back;
