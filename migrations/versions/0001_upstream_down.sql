drop table procjobs.schema_state;
