-- Undoes 0026_held_tenants.sql.

drop index public.pj_jobs_held_tenant;
