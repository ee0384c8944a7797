-- Undoes 0023_setting_log.sql. What was logged is gone.

drop table procjobs.setting_changes;
