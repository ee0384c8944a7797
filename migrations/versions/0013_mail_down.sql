-- Undoes 0013_mail.sql. Links in mails that were sent are good no more, even after another upgrade.

drop function if exists procjobs.begin_delivery(uuid, text, text);
drop function if exists procjobs.finish_delivery(bigint, text, integer, text, integer, text, text, text);
drop view if exists procjobs.suppressions;
drop table procjobs.suppressed_addresses;
drop table procjobs.unsubscriptions;
drop table procjobs.secrets;
