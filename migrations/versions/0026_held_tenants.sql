-- What waits for a limit, by tenant: places that are free in a fair queue go round. Applied by 0026_held_tenants.py.

create index pj_jobs_held_tenant on public.procrastinate_jobs (pj_held_by, queue_name, pj_tenant, priority desc, id)
  where status = 'todo' and pj_waits_for = 'limit' and pj_tenant is not null;
