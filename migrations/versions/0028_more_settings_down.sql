-- Undoes 0028_more_settings.sql. What was logged of other kinds is gone.

delete from procjobs.setting_changes where kind not in ('queue', 'task', 'limit');
alter table procjobs.setting_changes add constraint kind_known check (kind in ('queue', 'task', 'limit'));
