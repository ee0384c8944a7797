-- Undoes 0024_alert_mail.sql. Who was to be told is forgotten; messages that were requested stay.

drop view if exists procjobs.alert_recipient_list;
drop table procjobs.alert_letters, procjobs.alert_recipients cascade;
