-- Undoes 0027_rate_counts.sql.

drop table procjobs.limit_ends;
alter table procjobs.limits drop column rate_counts;
