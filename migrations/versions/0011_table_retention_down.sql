drop table procjobs.table_retention_log;
drop table procjobs.table_policies;
drop table procjobs.retry_rules;
drop type procjobs.cleaning;
delete from procjobs.retention_policies
where queue = 'calendar'
  and set_by = 'procjobs';
